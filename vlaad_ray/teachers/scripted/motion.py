"""How the expert moves: a clipped proportional law towards a goal that is a smooth function of the state.

Motions are generators of commands, one a control step; their return value says how they ended. They read the scene
at every step, so a push from outside is answered at the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from vlaad_ray.teachers.scripted.geometry import HeightMap, Scene, angle_between, rotation_vector

OPEN, CLOSED = -1.0, 1.0
FULL_ACTION = 0.05, 0.5
"""m and rad that action 1 asks for: LIBERO's OSC_POSE. The hand really moves 0.011 m and 0.14 rad a step."""
POSITION_GAIN, ROTATION_GAIN = 2.5, 1.2
LOOK_AHEAD = 0.1
"""s by which the hand's present velocity is looked ahead: it coasts. Without, it overshoots by 12 mm; with, by 3."""
STALL_STEPS = 14


@dataclass(frozen=True)
class Command:
    action: np.ndarray
    """[7] in [-1, 1]"""
    phase: str


Motion = Generator[Command, None, bool]
"""Returns whether it got where it meant to."""
Point = Callable[[], np.ndarray]
"""A position [3] that may move while it is being approached."""


def action_towards(
    scene: Scene, position: np.ndarray, rotation: np.ndarray, gripper: float, speed: float = 1.0
) -> np.ndarray:
    """[7] action for the hand to get to a pose. `speed` in (0, 1] limits the translation."""
    translation = (position - scene.hand - LOOK_AHEAD * scene.hand_velocity) / FULL_ACTION[0] * POSITION_GAIN
    translation *= min(1.0, speed / max(np.abs(translation).max(), 1e-9))
    turn = rotation_vector(rotation @ scene.hand_rotation.T) / FULL_ACTION[1] * ROTATION_GAIN
    turn *= min(1.0, 1 / max(np.abs(turn).max(), 1e-9))
    return np.concatenate([translation, turn, [gripper]])


class Progress:
    """Tells when a motion has come to a halt before its goal."""

    def __init__(self) -> None:
        self._best, self._since = np.inf, 0

    def stalled(self, error: float) -> bool:
        """error: distance to the goal, m. True after STALL_STEPS without coming 1 mm closer."""
        if error < self._best - 1e-3:
            self._best, self._since = error, 0
        else:
            self._since += 1
        return self._since > STALL_STEPS


def reach(
    scene: Scene,
    goal: Point | np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    phase: str,
    *,
    tolerance: float = 0.01,
    turn_tolerance: float = 0.1,
    speed: float = 1.0,
    limit: int = 120,
    until: Callable[[], bool] | None = None,
) -> Motion:
    """Straight to `goal`, until there, `until` is true, or the hand is stuck. tolerance in m, turn_tolerance in rad."""
    progress = Progress()
    for _ in range(limit):
        target = goal() if callable(goal) else goal
        error, turn = float(np.linalg.norm(target - scene.hand)), angle_between(rotation, scene.hand_rotation)
        if (error < tolerance and turn < turn_tolerance) or (until and until()):
            return True
        if progress.stalled(error + 0.1 * turn):
            return False
        yield Command(action_towards(scene, target, rotation, gripper, speed), phase)
    return False


def travel(
    scene: Scene,
    tip: Point,
    goal: Point,
    rotation: np.ndarray,
    gripper: float,
    heights: HeightMap,
    phases: tuple[str, str],
    *,
    radius: float,
    slack: float,
    blend: float,
    margin: float = 0.02,
    tolerance: float = 0.007,
    limit: int = 160,
    until: Callable[[], bool] | None = None,
) -> Motion:
    """Carry `tip` (the fingertips, or the lowest point of what they hold) over all obstacles and down on `goal`.

    One motion without way-points: the height aimed for is a function of the state. Far from the goal it clears what
    lies ahead by `margin`; within `slack` (m, horizontally) of it the tip may go down; over the next `blend` metres the
    two mix. The
    hand advances only as far as it has climbed. phases: (on the way, on the way down).
    """
    progress = Progress()
    for _ in range(limit):
        here, target, hand = tip(), goal(), scene.hand
        turn = angle_between(rotation, scene.hand_rotation)
        if (np.linalg.norm(target - here) < tolerance and turn < 0.1) or (until and until()):
            return True
        away = float(np.linalg.norm(target[:2] - here[:2])) + 0.1 * max(0.0, turn - 0.1)
        far = smooth_step((away - slack) / blend)
        clear = heights.clearance(here, target, radius) + margin
        height = target[2] + far * max(clear - target[2], 0.0)
        if progress.stalled(float(np.linalg.norm(target - here)) + 2 * max(0.0, float(height - here[2]))):
            return False
        pace = float(np.clip(1.2 - (height - here[2]) / 0.025, 0, 1))
        step = np.array([*(pace * (target - here)[:2]), height - here[2]])
        # Slower over the last centimetres: a student must see where to stop.
        speed = 0.45 + 0.55 * smooth_step((float(np.linalg.norm(target - here)) - 0.02) / 0.06)
        phase = phases[0] if far > 0.3 else phases[1]
        yield Command(action_towards(scene, hand + step, rotation, gripper, speed), phase)
    return False


def smooth_step(x: float) -> float:
    """0 below 0, 1 above 1, smooth between."""
    x = float(np.clip(x, 0, 1))
    return x * x * (3 - 2 * x)


def close_hand(scene: Scene, position: np.ndarray, rotation: np.ndarray, phase: str) -> Motion:
    """Close the fingers in place until they stop moving. True if they hold something."""
    last, still = scene.opening, 0
    for step in range(18):
        yield Command(action_towards(scene, position, rotation, CLOSED), phase)
        still = still + 1 if last - scene.opening < 0.0015 else 0
        last = scene.opening
        if step > 2 and still > 1:
            break
    return last > 0.0015


def open_hand(scene: Scene, position: np.ndarray, rotation: np.ndarray, phase: str, bodies: set[int]) -> Motion:
    """Open the fingers in place until they have let go of `bodies`."""
    for step in range(12):
        yield Command(action_towards(scene, position, rotation, OPEN), phase)
        if step > 2 and not scene.fingers_touching(bodies):
            return True
    return False
