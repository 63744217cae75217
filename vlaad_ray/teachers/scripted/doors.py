"""Hinged doors: pushed shut, and led open by their bar."""

from __future__ import annotations

import numpy as np

from vlaad_ray.teachers.scripted.articulated import UP, settled
from vlaad_ray.teachers.scripted.geometry import (
    HAND_DOWN,
    HeightMap,
    Scene,
    angle_between,
    closing_along,
    rotation_about,
)
from vlaad_ray.teachers.scripted.grasping import FINGER_RADIUS
from vlaad_ray.teachers.scripted.motion import (
    CLOSED,
    OPEN,
    Command,
    Motion,
    action_towards,
    close_hand,
    open_hand,
    reach,
    travel,
)

BAR_RADIUS = 0.01
"""m, of a door's bar."""


def shut_door(scene: Scene, fixture: str) -> Motion:
    """Push a hinged door's free edge along its arc with closed fingers."""
    joint = scene.region_joint(fixture)
    anchor, bodies = scene.joint_anchor(joint), scene.joint_bodies(joint)
    axis = -np.sign(scene.joint_value(joint) or -1.0) * scene.joint_axis(joint)

    def edge() -> np.ndarray:
        points = scene.points(bodies)
        distance = np.linalg.norm(points[:, :2] - anchor[:2], axis=1)
        far = points[distance > distance.max() - 0.05]
        return (far.min(axis=0) + far.max(axis=0)) / 2

    def push() -> np.ndarray:
        """Horizontal direction [3] in which the edge moves when the door shuts."""
        tangent = np.cross(axis, edge() - anchor)
        tangent[2] = 0
        return tangent / np.linalg.norm(tangent)

    height = edge()[2] + 0.02
    before = edge() - push() * 0.09
    top = scene.points(bodies)[:, 2].max() + 0.06
    yield from reach(
        scene, np.array([*scene.hand[:2], top]), HAND_DOWN, CLOSED, "approaching", tolerance=0.03, turn_tolerance=3
    )
    yield from reach(scene, np.array([*before[:2], top]), HAND_DOWN, CLOSED, "approaching", tolerance=0.03)
    yield from reach(scene, np.array([*before[:2], height]), HAND_DOWN, CLOSED, "approaching", tolerance=0.02)

    def beyond() -> np.ndarray:
        return np.array([*(edge() + push() * 0.05)[:2], height])

    return (
        yield from reach(
            scene,
            beyond,
            HAND_DOWN,
            CLOSED,
            "operating",
            tolerance=0.003,
            limit=200,
            until=settled(scene, ["close", fixture]),
        )
    )


def open_door(scene: Scene, fixture: str) -> Motion:
    """Take a hinged door's upright bar by its top, from above, and lead it along its arc, the wrist turning with it."""
    joint = scene.region_joint(fixture)
    anchor, bodies = scene.joint_anchor(joint), scene.joint_bodies(joint)
    closed, (low, high) = scene.joint_value(joint), scene.model.jnt_range[joint]
    way = 1.0 if high - closed > closed - low else -1.0
    axis = way * scene.joint_axis(joint)
    points = scene.points(bodies)
    sides = scene.joint_frame(joint).T
    across = max((*sides, *-sides), key=lambda side: float((points - anchor).mean(axis=0)[:2] @ side[:2]))
    outward = np.cross(axis, across)
    bar = points[points @ outward > (points @ outward).max() - 2 * BAR_RADIUS]
    grip = (bar.min(axis=0) + bar.max(axis=0)) / 2
    # The palm is wider than the gap behind the bar: it stays above the door.
    grip[2] = bar[:, 2].max() - 0.011
    down, _ = closing_along(across)
    half = rotation_about(axis, abs(high - low) / 4)
    rotation = min((down, down * [-1, -1, 1]), key=lambda r: angle_between(half @ r, HAND_DOWN))
    yield from travel(
        scene,
        lambda: scene.hand,
        lambda: grip,
        rotation,
        OPEN,
        HeightMap(scene.obstacles()),
        ("approaching", "approaching"),
        radius=FINGER_RADIUS,
        slack=0.005,
        blend=0.012,
    )
    held = yield from close_hand(scene, grip, rotation, "operating")
    until = settled(scene, ["open", fixture])
    for _ in range(120 if held else 0):
        if until() or not scene.fingers_touching(bodies):
            break
        turned = abs(scene.joint_value(joint) - closed)
        position = anchor + rotation_about(axis, turned + 0.2) @ (grip - anchor)
        yield Command(action_towards(scene, position, rotation_about(axis, turned) @ rotation, CLOSED), "operating")
    yield from open_hand(scene, scene.hand, scene.hand_rotation, "operating", bodies)
    yield from reach(scene, scene.hand + UP * 0.1, scene.hand_rotation, OPEN, "approaching", tolerance=0.03, limit=15)
    return scene.holds(["open", fixture])
