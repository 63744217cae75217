"""Drawers, knobs, and plates that are pushed rather than lifted."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np

from vlaad_ray.teachers.scripted.geometry import (
    HeightMap,
    Scene,
    angle_between,
    closing_along,
    rotation_about,
)
from vlaad_ray.teachers.scripted.grasping import FINGER_RADIUS, collisions
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

UP, TOWARDS_ROBOT = np.array([0, 0, 1.0]), np.array([-1.0, 0, 0])
DRAWER_TRAVEL = 0.17
"""m to pull, from where the handle is grasped; LIBERO calls a drawer open from 0.14."""
AJAR = 0.06
"""m that a drawer must stand open for the fingers to fit in behind its front."""
PLATE_RADIUS = 0.075
PRESS_STEPS = 3


def front_edge(scene: Scene, bodies: set[int], outward: np.ndarray) -> np.ndarray:
    """[3] middle of what sticks out furthest along `outward`: a drawer's handle."""
    points = scene.points(bodies)
    reachings = points @ outward
    edge = points[reachings > reachings.max() - 0.012]
    return (edge.min(axis=0) + edge.max(axis=0)) / 2


def settled(scene: Scene, goal: list[str]) -> Callable[[], bool]:
    """Whether a goal has held for PRESS_STEPS calls in a row: a thing pushed shut springs back if let go at once."""
    held = 0

    def until() -> bool:
        nonlocal held
        held = held + 1 if scene.holds(goal) else 0
        return held > PRESS_STEPS

    return until


def pull_drawer(scene: Scene, region: str) -> Motion:
    """Grip the handle with a level hand, fingers above and below it, and pull."""
    joint = scene.region_joint(region)
    outward, bodies = -scene.joint_axis(joint), scene.joint_bodies(joint)
    handle = front_edge(scene, bodies, outward)
    level = [np.stack([x, np.cross(-outward, x), -outward], axis=1) for x in (UP, -UP)]
    rotation = min(level, key=lambda candidate: angle_between(candidate, scene.hand_rotation))
    before = handle + outward * 0.08 + UP * 0.01

    yield from reach(scene, before, rotation, OPEN, "approaching", tolerance=0.03, turn_tolerance=0.25)
    grip = handle - outward * 0.004
    yield from reach(scene, grip, rotation, OPEN, "approaching", tolerance=0.008, speed=0.8, limit=40)
    held = yield from close_hand(scene, grip, rotation, "operating")
    start = scene.joint_value(joint)
    blocked = False
    if held:
        pulled = handle + outward * (DRAWER_TRAVEL + start)
        opened = scene.holds
        yield from reach(scene, pulled, rotation, CLOSED, "operating", limit=60, until=lambda: opened(["open", region]))
        blocked = not opened(["open", region]) and scene.fingers_touching(bodies) == 2
    yield from open_hand(scene, scene.hand, rotation, "operating", bodies)
    yield from reach(scene, scene.hand + outward * 0.04, rotation, OPEN, "approaching", tolerance=0.02, limit=12)
    # Turning the hand down where the arm is almost straight would lock the elbow: first back towards the robot.
    back = scene.hand + outward * 0.02 + TOWARDS_ROBOT * 0.12 + UP * 0.03
    yield from reach(scene, back, rotation, OPEN, "approaching", tolerance=0.03, limit=20)
    if blocked and abs(scene.joint_value(joint)) > AJAR:
        yield from push_open(scene, region)
    return scene.holds(["open", region])


def push_open(scene: Scene, region: str) -> Motion:
    """Push a drawer that stands ajar from inside its front: where the arm met something before the drawer was open."""
    outward = -scene.joint_axis(scene.region_joint(region))
    rotation, _ = closing_along(np.cross(UP, outward))
    reaches_to = float(scene.region_half(region) @ np.abs(outward))

    def inside() -> np.ndarray:
        front = scene.position(region) + outward * (reaches_to - 0.025)
        return np.array([*front[:2], scene.position(region)[2] + 0.01])

    yield from reach(scene, scene.hand + UP * 0.12, rotation, CLOSED, "approaching", tolerance=0.03, limit=40)
    yield from reach(scene, inside() + UP * 0.1, rotation, CLOSED, "approaching", tolerance=0.015)
    yield from reach(scene, inside(), rotation, CLOSED, "approaching", tolerance=0.015, limit=40)
    pushed = scene.hand + outward * (0.04 + DRAWER_TRAVEL - abs(scene.joint_value(scene.region_joint(region))))
    until = settled(scene, ["open", region])
    yield from reach(scene, pushed, rotation, CLOSED, "operating", limit=60, until=until)
    return (yield from reach(scene, scene.hand + UP * 0.1, rotation, CLOSED, "approaching", tolerance=0.03, limit=20))


def shut_drawer(scene: Scene, region: str, until: Callable[[], bool] | None = None) -> Motion:
    """Push the front with closed fingers, the hand tilted so that it clears the cabinet's top.

    `until`: when it is in far enough; None: when it is shut.
    """
    joint = scene.region_joint(region)
    outward, bodies = -scene.joint_axis(joint), scene.joint_bodies(joint)
    across = np.cross(UP, outward)
    level, _ = closing_along(across)
    rotation = min((rotation_about(across, tilt) @ level for tilt in (1.0, -1.0)), key=lambda r: r[:, 2] @ outward)
    edge = front_edge(scene, bodies, outward)
    before = edge + outward * 0.06

    # Closing the fingers while they are still around the thing just put in would take it out again.
    yield from reach(scene, scene.hand + UP * 0.08, scene.hand_rotation, OPEN, "approaching", tolerance=0.03, limit=12)
    yield from reach(scene, before + UP * 0.12, rotation, CLOSED, "approaching", tolerance=0.05, turn_tolerance=0.4)
    yield from reach(scene, before, rotation, CLOSED, "approaching", tolerance=0.02, turn_tolerance=0.15)

    def beyond() -> np.ndarray:
        front = front_edge(scene, bodies, outward) - outward * 0.05
        return np.array([*front[:2], edge[2]])

    until = until or settled(scene, ["close", region])
    shut = yield from reach(scene, beyond, rotation, CLOSED, "operating", tolerance=0.002, until=until)
    # Straight up: the fingertips may be behind the handle and would pull the drawer out again.
    yield from reach(scene, scene.hand + UP * 0.06, rotation, CLOSED, "completed", tolerance=0.02, limit=15)
    return shut and scene.holds(["close", region])


def turn_knob(scene: Scene, fixture: str, wanted: Callable[[float], bool], sign: float) -> Motion:
    """Grip the knob's ridge and turn the wrist until `wanted` is true of the joint's angle (rad)."""
    joint = scene.region_joint(fixture)
    bodies = scene.joint_bodies(joint)
    points = scene.points(bodies)
    top = points[points[:, 2] > points[:, 2].max() - 0.012]
    _, directions = np.linalg.eigh(np.cov(top[:, :2].T))
    rotation, _ = closing_along(directions[:, 0])
    grip = (top.min(axis=0) + top.max(axis=0)) / 2
    grip[2] = points[:, 2].max() - 0.022

    heights = HeightMap(scene.obstacles())
    yield from travel(
        scene,
        lambda: scene.hand,
        lambda: grip,
        rotation,
        OPEN,
        heights,
        ("approaching", "approaching"),
        radius=FINGER_RADIUS,
        slack=0.005,
        blend=0.012,
    )
    held = yield from close_hand(scene, grip, rotation, "operating")
    start = scene.joint_value(joint)
    turn = np.sign(scene.joint_axis(joint)[2]) * sign
    for _ in range(40 if held else 0):
        if wanted(scene.joint_value(joint)):
            break
        ahead = abs(scene.joint_value(joint) - start) + 0.35
        goal = rotation_about(UP, turn * ahead) @ rotation
        yield Command(action_towards(scene, grip, goal, CLOSED), "operating")
    yield from open_hand(scene, scene.hand, scene.hand_rotation, "operating", bodies)
    return wanted(scene.joint_value(joint))


def push_flat(scene: Scene, name: str, target: np.ndarray) -> Motion:
    """Drag a plate over the table by the closed fingers inside its rim until its centre is at target[:2]."""
    around = scene.obstacles(name)
    low, _ = scene.box(name)
    centre = scene.position(name)
    way = (target - centre)[:2] / np.linalg.norm((target - centre)[:2])

    def cost(angle: float) -> float:
        closing = np.array([np.cos(angle), np.sin(angle), 0])
        return collisions(centre, closing, around) + 0.3 * abs(closing_along(closing)[1])

    angle = min(np.arange(0, np.pi, np.pi / 12).tolist(), key=cost)
    rotation, _ = closing_along(np.array([np.cos(angle), np.sin(angle)]))
    start = np.array([*(centre[:2] + way * 0.02), low[2] + 0.014])
    yield from travel(
        scene,
        lambda: scene.hand,
        lambda: start,
        rotation,
        CLOSED,
        HeightMap(scene.obstacles()),
        ("approaching", "approaching"),
        radius=0.03,
        slack=0.01,
        blend=0.02,
        tolerance=0.008,
    )
    for corner in clear_path(centre[:2], target[:2], around[around[:, 2] > low[2] + 0.01]):
        for _ in range(100):
            here = scene.position(name)[:2]
            distance = np.linalg.norm(corner - here)
            if distance < 0.012 or np.linalg.norm(scene.hand[:2] - here) > 0.09:
                break
            ahead = (corner - here) / distance
            aside = np.array([-ahead[1], ahead[0]])
            goal = scene.hand[:2] + ahead * min(0.03, distance + 0.01) - aside * ((scene.hand[:2] - here) @ aside)
            action = action_towards(scene, np.array([*goal, low[2] + 0.012]), rotation, CLOSED, 0.6)
            yield Command(action, "operating")
    return bool(np.linalg.norm((target - scene.position(name))[:2]) < 0.03)


def clear_path(start: np.ndarray, end: np.ndarray, around: np.ndarray) -> list[np.ndarray]:
    """Corners [2] of the way on which a plate meets least of `around` [N, 3]: straight, or along one axis at a time."""

    def hits(corners: list[np.ndarray]) -> int:
        stations = np.concatenate([np.linspace(a, b, 12) for a, b in zip([start, *corners], corners, strict=False)])
        distance = np.linalg.norm(around[:, None, :2] - stations[None], axis=2).min(axis=1)
        return int((distance < PLATE_RADIUS).sum())

    ways = [[end], [np.array([start[0], end[1]]), end], [np.array([end[0], start[1]]), end]]
    return min(ways, key=hits)


def is_drawer(scene: Scene, joint: int) -> bool:
    return bool(scene.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE)
