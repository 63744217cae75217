"""Putting things on a shelf's boards, through its open front: pans by their handle, books with a level hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlaad_ray.teachers.scripted.geometry import Scene, angle_between, closing_along, rotation_about
from vlaad_ray.teachers.scripted.grasping import TALL_DEPTH, grasp, let_go, plan_grasps, takes_handle
from vlaad_ray.teachers.scripted.motion import CLOSED, OPEN, Motion, open_hand, reach

UP = np.array([0, 0, 1.0])
STEP_HEIGHT = 0.012
"""m above the board at which a thing is carried in."""
BEFORE = 0.04
"""m between a thing and the shelf's front before it is carried in."""
LOW_SLANT = np.deg2rad(45)
"""Between the vertical and a hand that lays a book down before a board too low for it: the palm clears the table."""
LOW_DEPTH = 0.04
"""m that its foot is then pushed in."""

Station = tuple[float, np.ndarray]


def put_on_shelf(scene: Scene, name: str, region: str, shelf: str) -> Motion:
    """Grasp a thing, carry it in through the shelf's front, let go, draw back; push in what then lies before it."""
    inward = way_in(scene, region, shelf)
    if abs(scene.rotation(name)[2, 2]) < 0.5:
        return (yield from push_in(scene, name, region, inward))
    if not (yield from grasp(scene, name, plan_grasps(scene, name)[0])):
        return (yield from let_go(scene, name))
    stations, floor = stations_of(scene, name, region, inward)
    front = scene.position(region) - inward * (scene.region_half(region) @ np.abs(inward))

    def hand_for(depth: float, height: float) -> Callable[[], np.ndarray]:
        """Where [3] the hand brings the thing's origin `depth` m in and its lowest point `height` m over the board."""
        place = np.array([*(front + inward * depth)[:2], floor + height])
        return lambda: scene.hand + place - np.array([*scene.position(name)[:2], scene.box(name)[0][2]])

    lift = scene.hand + UP * 0.1
    yield from reach(scene, lift, scene.hand_rotation, CLOSED, "transporting", tolerance=0.02, limit=25)
    depth, rotation = stations[0]
    high = hand_for(depth, 0.12)
    yield from reach(scene, high, rotation, CLOSED, "transporting", tolerance=0.02, limit=80)
    for depth, rotation in stations:
        level = hand_for(depth, STEP_HEIGHT)
        yield from reach(scene, level, rotation, CLOSED, "transporting", tolerance=0.012, limit=50)
    yield from reach(scene, hand_for(depth, 0.0), rotation, CLOSED, "placing", tolerance=0.006, limit=15)
    yield from open_hand(scene, scene.hand, rotation, "placing", scene.bodies(name))
    # Along the fingers: aside they would take the thing with them.
    back = scene.hand - 0.12 * rotation[:, 2]
    yield from reach(scene, back, rotation, OPEN, "approaching", tolerance=0.03, limit=25)
    return depth > 0 or (yield from push_in(scene, name, region, inward))


def push_in(scene: Scene, name: str, region: str, inward: np.ndarray) -> Motion:
    """Push what lies flat before a low board under it, by its outer edge, with the closed fingers."""
    outer = scene.object_points(name) @ inward
    low, high = scene.box(name)
    middle = (low + high) / 2
    edge = middle + inward * (outer.min() - middle @ inward)
    edge[2] = low[2] + 0.012
    rotation, _ = closing_along(np.cross(UP, inward))
    front = scene.position(region) - inward * (scene.region_half(region) @ np.abs(inward))
    way = float((front - scene.position(name)) @ inward) + LOW_DEPTH
    yield from reach(scene, edge - inward * 0.03 + UP * 0.08, rotation, CLOSED, "approaching", tolerance=0.015)
    yield from reach(scene, edge - inward * 0.03, rotation, CLOSED, "approaching", limit=40)
    return (yield from reach(scene, edge + inward * (way - 0.01), rotation, CLOSED, "operating", limit=60))


def stations_of(scene: Scene, name: str, region: str, inward: np.ndarray) -> tuple[list[Station], float]:
    """How deep (m) the origin of what is held goes in and the hand's rotation there; and the board's height (m)."""
    floor, ceiling = boards(scene, name, region)
    size = np.ptp((scene.object_points(name) - scene.position(name)) @ scene.rotation(name), axis=0)
    _, broad, tall = np.sort(size).tolist()
    room = 2 * float(scene.region_half(region) @ np.abs(inward))
    if takes_handle(name):
        rotation = handle_outward(scene, name, inward)
        return [(-broad / 2 - BEFORE, rotation), (room - broad / 2 - 0.005, rotation)], floor
    if broad + 2 * STEP_HEIGHT > ceiling - floor:
        rotation = pointing(scene, inward, inward, LOW_SLANT)
        return [(-0.02, rotation)], floor

    def fits(slant: float, depth: float) -> bool:
        return broad / np.sin(slant) + max(depth, 0) / np.tan(slant) + 1.5 * STEP_HEIGHT < ceiling - floor

    slants = np.deg2rad(np.arange(50, 90, 2))
    depths = [share * (tall - TALL_DEPTH) - BEFORE * (share == 0) for share in (0, 0.3, 0.6, 1)]

    def level(depth: float) -> np.ndarray:
        slant = next((s for s in slants if fits(s, depth)), np.pi / 2)
        return pointing(scene, np.cross(UP, inward), inward, slant)

    return [(depth, level(depth)) for depth in depths], floor


def way_in(scene: Scene, region: str, shelf: str) -> np.ndarray:
    """[3] horizontal unit vector through the open side of a shelf: that with least wall of its region's four."""
    centre, half = scene.position(region), scene.region_half(region)
    walls = scene.object_points(shelf) - centre
    level = walls[np.abs(walls[:, 2]) < half[2] / 2]

    def wall(way: np.ndarray) -> int:
        aside = np.abs(level @ np.cross(UP, way)) < 0.7 * (half @ np.abs(np.cross(UP, way)))
        return int((aside & (level @ way > 0.8 * (half @ np.abs(way)))).sum())

    ways = [np.array([np.cos(a), np.sin(a), 0.0]).round() for a in np.arange(4) * np.pi / 2]
    return -min(ways, key=wall)


def boards(scene: Scene, name: str, region: str) -> tuple[float, float]:
    """Heights (m) of what is below and what is above a region."""
    centre, half = scene.position(region), scene.region_half(region)
    around = scene.obstacles(name)
    inner = (np.abs(around - centre)[:, :2] < half[:2] - 0.02).all(axis=1)
    heights = around[inner, 2]
    return float(heights[heights < centre[2]].max()), float(heights[heights > centre[2]].min())


def handle_outward(scene: Scene, name: str, inward: np.ndarray) -> np.ndarray:
    """[3, 3] of the hand that holds a pan by its handle, once the handle points out of the shelf."""
    along = scene.hand - scene.position(name)
    yaw = np.arctan2(-inward[1], -inward[0]) - np.arctan2(along[1], along[0])
    return rotation_about(UP, float((yaw + np.pi) % (2 * np.pi) - np.pi)) @ scene.hand_rotation


def pointing(scene: Scene, closing: np.ndarray, inward: np.ndarray, slant: float) -> np.ndarray:
    """[3, 3] of the hand that closes along `closing` once it is tilted from the vertical by `slant` (rad) to point in.

    Of the two that hold alike the one nearer to the hand's present attitude.
    """
    down, _ = closing_along(closing)
    tilt = rotation_about(np.cross(inward, UP), slant)
    tilt = tilt if (tilt @ down[:, 2]) @ inward > 0 else tilt.T
    both = [tilt @ down, tilt @ (down * [-1, -1, 1])]
    return min(both, key=lambda rotation: angle_between(rotation, scene.hand_rotation))
