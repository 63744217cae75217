"""Where to take hold of an object, and taking hold of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlaad_ray.teachers.scripted.geometry import HeightMap, Scene, closing_along
from vlaad_ray.teachers.scripted.motion import OPEN, Motion, close_hand, open_hand, reach, travel

MAX_WIDTH = 0.075
"""m, widest thing that fits between the open fingers with some play."""
RIMMED = ("bowl", "plate", "ramekin", "mug")
"""Objects wider than the hand, taken by their rim."""
TALL = ("mug",)
"""Of those, as tall as wide: a hand that comes in low from the side tips them over."""
HANDLED = ("pan",)
"""Objects with a long handle, taken by it: their side is too thick and too round to hold."""
COMFORTABLE_REACH = 0.74
"""m, horizontally from the robot's base. Further out the elbow comes to its stop and the hand can't be steered."""
FINGER_RADIUS = 0.067
"""m, horizontal reach of the open fingers around the hand's centre."""
DEPTH = 0.026
"""m that a rim stands above the fingertips' centre when grasped. The palm would touch at 0.033."""
TALL_DEPTH = 0.032
"""The same for boxes, cans and bottles: below the gable of a carton, on which an opening finger would catch."""
RIM_FUNNEL, SIDE_FUNNEL = (0.04, 0.015), (0.012, 0.03)
"""m: over which distance beyond a grasp's slack the way down and the way over mix, and the clearance on the way.

A narrow funnel is a law that a camera cannot see: a hand 8 to 24 mm off a rim was told "up" and "down" about as often,
and students stood still there. Fingers around a box, or in a mug, need it: they would tip it over.
"""


@dataclass(frozen=True)
class Grasp:
    cost: float
    position: np.ndarray
    """[3] of the hand when it closes."""
    rotation: np.ndarray
    """[3, 3]"""
    slack: float
    """m, how far off horizontally the fingers may go down."""
    funnel: tuple[float, float]
    """m, RIM_FUNNEL or SIDE_FUNNEL."""


def plan_grasps(
    scene: Scene, name: str, shift: np.ndarray | None = None, preferred: np.ndarray | None = None
) -> list[Grasp]:
    """Grasps from above, best first.

    Costs: width, turning the wrist, and what the hand would run into, here and after the object has been moved by
    `shift` [3] (to its destination); closing along `preferred` [3] is cheaper. They are weighed so that nearly equal
    states lead to nearly equal grasps.
    """
    rimmed, tall = has_rim(name), any(kind in name for kind in TALL)
    if takes_handle(name):
        candidates = handle_grasps(scene, name)
    else:
        candidates = rim_grasps(scene, name) if rimmed else side_grasps(scene, name)
    around = scene.obstacles(name)
    grasps = []
    for position, rotation, width, cost in candidates:
        closing = rotation[:, 0]
        stretch = np.linalg.norm(position[:2] - scene.base[:2]) - COMFORTABLE_REACH
        cost += collisions(position, closing, around) + 20 * max(0.0, float(stretch))
        if shift is not None:
            cost += 0.5 * collisions(position + shift, closing, around)
        if preferred is not None:
            cost += 2 * (1 - abs(float(closing @ preferred)))
        slack = float(np.clip((0.08 - width) / 2 - 0.009, 0.003, 0.01))
        grasps.append(Grasp(cost, position, rotation, slack, RIM_FUNNEL if rimmed and not tall else SIDE_FUNNEL))
    return sorted(grasps, key=lambda grasp: grasp.cost)


Candidate = tuple[np.ndarray, np.ndarray, float, float]
"""Hand position [3], rotation [3, 3], width between the fingers (m), cost."""


def side_grasps(scene: Scene, name: str) -> list[Candidate]:
    """Around boxes, cans and bottles: the object's width at a height, for every yaw."""
    points = scene.object_points(name)
    low, high = points[:, 2].min(), points[:, 2].max()
    heights = [max(low + 0.012, high - TALL_DEPTH), max(low + 0.012, high - 0.018)]
    candidates = []
    for rank, height in enumerate(heights):
        slice_ = points[np.abs(points[:, 2] - height) < 0.016]
        slice_ = slice_ if len(slice_) >= 8 else points
        for angle in np.arange(0, np.pi, np.pi / 36):
            closing = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-closing[1], closing[0]])
            a, b = slice_[:, :2] @ closing, slice_[:, :2] @ across
            width = float(np.ptp(a))
            centre = closing * (a.max() + a.min()) / 2 + across * (b.max() + b.min()) / 2
            rotation, yaw = closing_along(closing)
            cost = 30 * width + 0.35 * abs(yaw) + 0.1 * rank + (50 if width > MAX_WIDTH else 0)
            # Off the middle only where a neighbour is in the way.
            for offset in (0.0, 0.02, -0.02):
                if offset == 0 or np.ptp(b) > 0.07:
                    position = np.array([*(centre + offset * across), height])
                    candidates.append((position, rotation, width, cost + 20 * abs(offset)))
    return candidates


def rim_grasps(scene: Scene, name: str) -> list[Candidate]:
    """Across the wall of a bowl, mug or plate, one finger inside."""
    points = scene.object_points(name)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = (low + high)[:2] / 2
    top = points[points[:, 2] > high[2] - 0.012][:, :2]
    radius = np.linalg.norm(top - centre, axis=1).max() - 0.006
    height = max(high[2] - (0.012 if "plate" in name else DEPTH), low[2] + 0.008)
    candidates = []
    for angle in np.arange(0, 2 * np.pi, np.pi / 12):
        outward = np.array([np.cos(angle), np.sin(angle)])
        rotation, yaw = closing_along(outward)
        # The last term settles ties between the two sides of a rim, always the same way.
        cost = 0.5 * abs(yaw) + 0.1 * (1 - outward[1])
        candidates.append((np.array([*(centre + outward * radius), height]), rotation, 0.055, cost))
    return candidates


def has_rim(name: str) -> bool:
    return any(kind in name for kind in RIMMED)


def takes_handle(name: str) -> bool:
    return any(kind in name for kind in HANDLED)


def handle_grasps(scene: Scene, name: str) -> list[Candidate]:
    """Across the handle of a pan, as near to its body as the hand finds room."""
    points = scene.object_points(name)
    away = np.linalg.norm((points - scene.position(name))[:, :2], axis=1)
    candidates = []
    for share in (0.5, 0.6, 0.7, 0.8):
        part = points[np.abs(away - share * away.max()) < 0.015]
        centre = (part.min(axis=0) + part.max(axis=0)) / 2
        along = (centre - scene.position(name))[:2] / np.linalg.norm((centre - scene.position(name))[:2])
        rotation, yaw = closing_along(np.array([-along[1], along[0]]))
        width = float(np.ptp(part[:, :2] @ rotation[:2, 0]))
        height = max(part[:, 2].max() - 0.016, points[:, 2].min() + 0.012)
        candidates.append((np.array([*centre[:2], height]), rotation, width, 0.5 * abs(yaw) + 2 * share))
    return candidates


def collisions(position: np.ndarray, closing: np.ndarray, around: np.ndarray) -> float:
    """Roughly how much of `around` [N, 3] the open hand at `position` overlaps: 0 for none, about 1 for a clear hit."""
    offset = around - position
    along = np.abs(offset[:, :2] @ closing[:2])
    aside = np.abs(offset[:, :2] @ np.array([-closing[1], closing[0]]))
    fingers = (along < FINGER_RADIUS) & (aside < 0.014) & (offset[:, 2] > -0.012)
    palm = (along < 0.108) & (aside < 0.036) & (offset[:, 2] > 0.028)
    arm = (np.hypot(along, aside) < 0.08) & (offset[:, 2] > 0.11)
    return float(np.sqrt(fingers.sum()) / 2 + np.sqrt((palm | arm).sum()) / 3)


def grasp(scene: Scene, name: str, plan: Grasp, phase: str = "approaching") -> Motion:
    """Go there with open fingers, close them. True if they hold something."""
    heights = HeightMap(scene.obstacles())
    blend, margin = plan.funnel
    arrived = yield from travel(
        scene,
        lambda: scene.hand,
        lambda: plan.position,
        plan.rotation,
        OPEN,
        heights,
        (phase, phase),
        radius=FINGER_RADIUS,
        slack=plan.slack,
        blend=blend,
        margin=margin,
        tolerance=0.006,
    )
    # Nudged in passing: plan again from where it now lies.
    if not arrived and np.linalg.norm(scene.hand - plan.position) > 0.02:
        return False
    return (yield from close_hand(scene, plan.position, plan.rotation, "grasping"))


def let_go(scene: Scene, name: str) -> Motion:
    """After a failed grasp: open, and rise enough to look again."""
    yield from open_hand(scene, scene.hand, scene.hand_rotation, "regrasping", scene.bodies(name))
    rise = scene.hand + np.array([0, 0, 0.06])
    return (yield from reach(scene, rise, scene.hand_rotation, OPEN, "regrasping", tolerance=0.02, limit=20))
