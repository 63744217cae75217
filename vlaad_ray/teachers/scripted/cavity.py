"""Putting a mug into a microwave: by its handle, with a slanted hand, through the front."""

from __future__ import annotations

import numpy as np

from vlaad_ray.teachers.scripted.geometry import HeightMap, Scene
from vlaad_ray.teachers.scripted.grasping import FINGER_RADIUS, let_go
from vlaad_ray.teachers.scripted.motion import CLOSED, OPEN, Motion, close_hand, open_hand, reach, travel

SLANT = np.deg2rad(40)
"""Between the fingers and the horizontal: level enough to get under the ceiling, steep enough to clear the table."""
STEP_HEIGHT = 0.012
"""m above the cavity's floor at which a thing is carried in."""
UP = np.array([0, 0, 1.0])


def handle(scene: Scene, name: str, inward: np.ndarray) -> np.ndarray:
    """[3] middle of the outermost part of an object on the side that faces out of the cavity."""
    points, origin = scene.object_points(name), scene.position(name)
    out = -(points - origin) @ inward
    grip = points[out > out.max() - 0.009]
    return (grip.min(axis=0) + grip.max(axis=0)) / 2


def put_in_cavity(scene: Scene, name: str, region: str, fixture: str) -> Motion:
    """Hold a mug by the handle that points out of the cavity, carry it in over the sill, let go, draw back."""
    inward = scene.region_axes(region)[:, 1]
    grip = handle(scene, name, inward)
    pointing = np.cos(SLANT) * inward - np.sin(SLANT) * UP
    closing = np.cross(UP, inward)
    rotation = np.stack([closing, np.cross(pointing, closing), pointing], axis=1)
    if np.trace(rotation @ scene.hand_rotation.T) < np.trace((rotation * [-1, -1, 1]) @ scene.hand_rotation.T):
        rotation = rotation * [-1, -1, 1]

    yield from travel(
        scene,
        lambda: scene.hand,
        lambda: grip,
        rotation,
        OPEN,
        HeightMap(scene.obstacles()),
        ("approaching", "approaching"),
        radius=FINGER_RADIUS,
        slack=0.006,
        blend=0.012,
        margin=0.03,
    )
    if not (yield from close_hand(scene, grip, rotation, "grasping")):
        return (yield from let_go(scene, name))

    centre, floor = room(scene, region, fixture)
    inside = np.array([*centre[:2], floor])

    def hand_for(place: np.ndarray) -> np.ndarray:
        return scene.hand + place - scene.position(name)

    outside = inside - inward * 0.20 + UP * STEP_HEIGHT
    lift = scene.hand + UP * 0.05
    yield from reach(scene, lift, rotation, CLOSED, "transporting", tolerance=0.02, limit=15)
    yield from reach(scene, lambda: hand_for(outside), rotation, CLOSED, "transporting", tolerance=0.012, limit=60)
    over = inside + UP * STEP_HEIGHT
    yield from reach(scene, lambda: hand_for(over), rotation, CLOSED, "transporting", tolerance=0.01, limit=50)
    yield from reach(scene, lambda: hand_for(inside), rotation, CLOSED, "placing", tolerance=0.006, limit=15)
    yield from open_hand(scene, scene.hand, rotation, "placing", scene.bodies(name))
    back = scene.hand - inward * 0.12 + UP * 0.04
    return (yield from reach(scene, back, rotation, OPEN, "approaching", tolerance=0.03, limit=25))


def room(scene: Scene, region: str, fixture: str) -> tuple[np.ndarray, float]:
    """Where a mug's origin goes in a cavity [3], as far in as the palm allows, and the height of its floor (m)."""
    door = scene.joint_bodies(scene.region_joint(fixture))
    walls = scene.points(scene.bodies(fixture) - door)
    centre, inward = scene.position(region), scene.region_axes(region)[:, 1]
    aside = np.cross(inward, UP)
    size = scene.region_size(region)
    depth, sideways = (walls - centre) @ inward, (walls - centre) @ aside
    level = (np.abs(walls[:, 2] - centre[2]) < 0.03) & (np.abs(depth) < size[1] * 0.5)
    left, right = sideways[level & (sideways < 0)].max(), sideways[level & (sideways > 0)].min()
    below = (np.abs(depth) < size[1] * 0.5) & (sideways > left) & (sideways < right) & (walls[:, 2] < centre[2])
    place = centre + aside * (left + right) / 2 - inward * 0.045
    return place, float(walls[below, 2].max())
