"""Carrying an object to where the goal wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vlaad_ray.teachers.scripted.geometry import HeightMap, Scene, closing_along, rotation_about
from vlaad_ray.teachers.scripted.grasping import SIDE_FUNNEL, Grasp, collisions, grasp, has_rim, let_go, plan_grasps
from vlaad_ray.teachers.scripted.motion import CLOSED, OPEN, Motion, open_hand, reach, travel

SLIP = 0.03
"""m that an object may shift in the hand before it counts as lost."""
ATTEMPTS = 4
NEAR = 0.3
"""m, horizontally from the robot's base. Nearer, the arm may have to fold further than it can."""
LEAN = 0.45
"""rad, of the hand's top away from the base, for what lies so near."""
HAND_ROOM = 0.075
"""m that the hand needs beside a thing which hangs over the object."""


@dataclass(frozen=True)
class Placement:
    """Where and how an object is let go."""

    target: Callable[[], np.ndarray]
    """[3]: x, y for the object's origin, z for its lowest point."""
    align: np.ndarray | None = None
    """[2] direction along which the hand closes when it lets go; None: as at the grasp."""
    lean: np.ndarray | None = None
    """[3, 3] rotation by which the object leans when it is let go; None: upright."""
    closing: np.ndarray | None = None
    """[3] direction along which the hand had better close at the grasp; None: any."""
    slack: float = 0.01
    """m, how far off horizontally it may already go down."""

    def rotation(self, plan: Grasp) -> np.ndarray:
        """[3, 3] of the hand when it lets go."""
        rotation = plan.rotation if self.align is None else closing_along(self.align)[0]
        return rotation if self.lean is None else self.lean @ rotation


def pick_and_place(scene: Scene, name: str, placement: Placement) -> Motion:
    """Grasp an object, bring it to its place and let go, with a new grasp whenever one fails.

    What is in the hand already, as when the expert takes over from a student, stays there.
    """
    failed: list[np.ndarray] = []
    if scene.fingers_touching(scene.bodies(name)) == 2:
        upright, _ = closing_along(scene.hand_rotation[:2, 0])
        here = Grasp(0.0, scene.hand, upright, 0.0, SIDE_FUNNEL)
        if (yield from carry(scene, name, placement, placement.rotation(here))):
            yield from open_hand(scene, scene.hand, scene.hand_rotation, "placing", scene.bodies(name))
            return True
        yield from let_go(scene, name)
    leaning = False
    for attempt in range(ATTEMPTS):
        closing = across_from_base(scene, name) if leaning else placement.closing
        plans = plan_grasps(scene, name, shift(scene, name, placement), closing)
        # The best once more from where it lies now; only then elsewhere on the object.
        places = [plan.position - scene.position(name) for plan in plans]
        fresh = (i for i, place in enumerate(places) if all(np.linalg.norm(place - bad) > 0.02 for bad in failed))
        chosen = next(fresh, 0) if attempt > 1 else 0
        plan = plans[chosen]
        failed.append(places[chosen])
        plan = leaning_out(scene, plan) if leaning else plan
        held = yield from grasp(scene, name, plan)
        leaning = leaning or too_near(scene, plan)
        if held:
            yield from out_from_under(scene, name, plan.rotation)
            held = yield from carry(scene, name, placement, placement.rotation(plan))
        if held:
            yield from open_hand(scene, scene.hand, scene.hand_rotation, "placing", scene.bodies(name))
            return True
        yield from let_go(scene, name)
    return False


def too_near(scene: Scene, plan: Grasp) -> bool:
    """Whether the arm could not fold far enough to bring a hand that points straight down to a grasp."""
    wanted, reached = (float(np.linalg.norm((at - scene.base)[:2])) for at in (plan.position, scene.hand))
    return wanted < NEAR and reached > wanted + 0.008


def across_from_base(scene: Scene, name: str) -> np.ndarray:
    """[3] horizontal unit vector square to the way from the robot's base to an object."""
    away = scene.position(name) - scene.base
    return np.array([-away[1], away[0], 0.0]) / np.linalg.norm(away[:2])


def leaning_out(scene: Scene, plan: Grasp) -> Grasp:
    """The same grasp with the wrist further from the base than the fingertips."""
    away = plan.position - scene.base
    leans = [rotation_about(plan.rotation[:, 0], angle) @ plan.rotation for angle in (LEAN, -LEAN)]
    return replace(plan, rotation=min(leans, key=lambda rotation: rotation[:2, 2] @ away[:2]))


def shift(scene: Scene, name: str, placement: Placement) -> np.ndarray:
    """[3] from where an object is to where it will be."""
    target = placement.target()
    here = np.array([*scene.position(name)[:2], scene.box(name)[0][2]])
    return target - here


def carry(scene: Scene, name: str, placement: Placement, rotation: np.ndarray) -> Motion:
    """Lift, carry and lower a grasped object. False as soon as it has slipped out of the hand."""
    bodies = scene.bodies(name)
    offset, loose = scene.in_hand(name), 0

    def tip() -> np.ndarray:
        return np.array([*scene.position(name)[:2], scene.box(name)[0][2]])

    def lost() -> bool:
        nonlocal loose
        slipped = np.linalg.norm(scene.in_hand(name) - offset) > SLIP
        loose = loose + 1 if slipped or not scene.fingers_touching(bodies) else 0
        return loose > 3

    points = scene.object_points(name)
    radius = float(np.linalg.norm(points[:, :2] - scene.position(name)[:2], axis=1).max())
    heights = HeightMap(scene.obstacles(name))
    for _ in range(2):
        yield from travel(
            scene,
            tip,
            placement.target,
            rotation,
            CLOSED,
            heights,
            ("transporting", "placing"),
            radius=min(radius + 0.01, 0.12),
            slack=placement.slack,
            blend=0.025,
            until=lost,
        )
        if loose > 3:
            return False
        if np.linalg.norm((tip() - placement.target())[:2]) < 0.03:
            return True
        # Caught on something before it was there: higher, and again.
        rise = scene.hand + np.array([0, 0, 0.08])
        yield from reach(scene, rise, scene.hand_rotation, CLOSED, "transporting", tolerance=0.02, limit=15)
    return True


def out_from_under(scene: Scene, name: str, rotation: np.ndarray) -> Motion:
    """Move a grasped object sideways, hardly lifted, until nothing (an open drawer) hangs over it or the hand."""
    points = np.concatenate([scene.object_points(name), [scene.hand - 0.05, scene.hand + 0.05]])
    top = scene.box(name)[1][2]
    above = scene.obstacles(name)
    above = above[above[:, 2] > top + 0.02][:, :2]
    low, high = points.min(axis=0)[:2] - 0.015, points.max(axis=0)[:2] + 0.015

    def free(way: np.ndarray) -> bool:
        return not ((above > low + way[:2]) & (above < high + way[:2])).all(axis=1).any()

    ways = (
        np.array([distance * np.cos(angle), distance * np.sin(angle), 0.02])
        for distance in np.arange(0, 0.2, 0.02)
        for angle in np.arange(0, 2 * np.pi, np.pi / 4)
    )
    way = next(filter(free, ways), None)
    if way is None or not way[:2].any():
        return True
    return (yield from reach(scene, scene.hand + way, rotation, CLOSED, "transporting", tolerance=0.015, limit=40))


def clear_drawer(scene: Scene, name: str, joint: int) -> Motion:
    """Move an object to a free spot close by if the drawer, once open, would hang over it."""
    spot = free_spot(scene, name, joint)
    if spot is None:
        return True
    placed = yield from pick_and_place(scene, name, Placement(lambda: spot, slack=0.03))
    rise = scene.hand + np.array([0, 0, 0.08])
    yield from reach(scene, rise, scene.hand_rotation, OPEN, "approaching", tolerance=0.03, limit=10)
    return placed


def room_for_hand(scene: Scene, name: str, region: str) -> bool:
    """Whether an open drawer leaves the hand room to grasp what lies before it. A rim has a far side."""
    if has_rim(name):
        return True
    drawer = scene.points(scene.joint_bodies(scene.region_joint(region)))
    plan = plan_grasps(scene, name)[0]
    return collisions(plan.position, plan.rotation[:, 0], drawer) == 0


def free_spot(scene: Scene, name: str, joint: int) -> np.ndarray | None:
    """[3] where to set an object down, out of the way of a drawer that will open; None if it may stay."""
    drawer = scene.points(scene.joint_bodies(joint))
    opened = drawer - 0.16 * scene.joint_axis(joint)
    low = np.minimum(drawer.min(axis=0), opened.min(axis=0))[:2] - HAND_ROOM
    high = np.maximum(drawer.max(axis=0), opened.max(axis=0))[:2] + HAND_ROOM
    here, (bottom, top) = scene.position(name)[:2], scene.box(name)

    def under(spot: np.ndarray) -> bool:
        return bool(((spot > low) & (spot < high)).all())

    if drawer[:, 2].min() < top[2] or not under(here):
        return None
    size = float((top - bottom)[:2].max()) / 2 + 0.01
    around = scene.obstacles(name)
    around = around[around[:, 2] > bottom[2] + 0.01][:, :2]
    for distance in np.arange(0.04, 0.3, 0.01):
        for angle in np.arange(0, 2 * np.pi, np.pi / 12):
            spot = here + distance * np.array([-np.cos(angle), np.sin(angle)])
            if not under(spot) and np.linalg.norm(around - spot, axis=1).min() > size:
                return np.array([*spot, bottom[2] + 0.003])
    return None
