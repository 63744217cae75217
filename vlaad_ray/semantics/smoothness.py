"""How noisy a teacher's targets are, step by step: flips of the gripper that it takes back, jerk, stalls. Pure numpy.

The formulas, with what they were checked on, are in docs/noise.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlaad_ray.semantics.phases import MIN_COMMAND_FRAMES

LONGEST_FLIP = MIN_COMMAND_FRAMES - 1
"""A gripper command of up to this many steps that is then taken back was not meant. Two steps open by 7 mm at most."""
STILL_ACTION = 0.02
"""A target below this in all of an action's motions asks for no motion: under 0.3 mm and 3 mrad a step."""


def sides(commands: np.ndarray) -> np.ndarray:
    """[T] gripper commands -> [T] bool, closed. A command of 0 keeps the side before it.

    Before the first other one there is no side: zeros there get the side that it begins with, since nothing changes.
    """
    signs = np.sign(np.asarray(commands, np.float64))
    clear = np.flatnonzero(signs)
    if len(clear) == 0:
        return np.zeros(len(signs), bool)
    last_clear = np.maximum.accumulate(np.where(signs != 0, np.arange(len(signs)), clear[0]))
    return signs[last_clear] > 0


def self_revoked(commands: np.ndarray, longest: int = LONGEST_FLIP) -> np.ndarray:
    """[T] gripper commands -> [T] bool: the step belongs to a command that is taken back within `longest` steps.

    What was meant is the sequence that minimises (steps turned) + (longest + 1/2) / 2 x (changes of side): the Potts
    functional, solved exactly by dynamic programming. Taking out a run of n steps saves two changes, so an isolated run
    goes if n <= longest and stays if it is longer; where runs crowd, the smaller side gives way. A run at either end of
    the episode has not been seen to begin or to be taken back and never counts.
    """
    given = sides(commands)
    turned = _nearest_steady(given, (longest + 0.5) / 2) != given
    meant_at = np.flatnonzero(~turned)
    turned[: meant_at[0] if len(meant_at) else None] = False
    turned[meant_at[-1] + 1 if len(meant_at) else 0 :] = False
    return turned


def meant_gripper(commands: np.ndarray, longest: int = LONGEST_FLIP) -> np.ndarray:
    """[T] gripper commands with the self-revoked ones turned to the other side, in the same magnitude."""
    commands = np.asarray(commands)
    return np.where(self_revoked(commands, longest), -commands, commands)


def reversals(commands: np.ndarray) -> np.ndarray:
    """[T] gripper commands -> [T] bool: the side differs from that of the step before."""
    closed = sides(commands)
    return np.concatenate([[False], closed[1:] != closed[:-1]])[: len(closed)]


def gripper_flips(commands: Sequence[float] | np.ndarray) -> int:
    """Number of reversals in a sequence of gripper commands [T], -1 open to +1 closed."""
    return int(reversals(np.asarray(commands, np.float64)).sum())


def asked_jerk(translations: np.ndarray) -> np.ndarray:
    """[T, 3] translations asked for -> [T] size of the third difference of the commanded path, NaN at both ends.

    An action's translation is the path's first difference, so this is |a[t+1] - 2 a[t] + a[t-1]|, in full-scale actions
    a step squared; of a robot without translations, over all its motions. White noise of standard deviation s on each
    of three axes alone has a root mean square of sqrt(18) s = 4.2 s.
    """
    jerk = np.full(len(translations), np.nan)
    jerk[1:-1] = np.linalg.norm(np.diff(np.asarray(translations, float), n=2, axis=0), axis=1)
    return jerk


def moved_jerk(positions: np.ndarray, rate_hz: float) -> np.ndarray:
    """[T, 3] positions of the hand (m) -> [T] size of their third difference, m/s^3, NaN where unknown.

    What the robot went through, executed-action noise included.
    """
    jerk = np.full(len(positions), np.nan)
    jerk[2:-1] = np.linalg.norm(np.diff(np.asarray(positions, float), n=3, axis=0), axis=1) * rate_hz**3
    return jerk


def stalled(motions: np.ndarray) -> np.ndarray:
    """[T, M] actions without the gripper's number -> [T] bool: the target asks for no motion."""
    return np.abs(motions).max(axis=1, initial=0.0) < STILL_ACTION


def _nearest_steady(given: np.ndarray, change: float) -> np.ndarray:
    """[T] bool -> [T] bool that minimises (steps that differ) + `change` x (changes). Viterbi; a tie changes later."""
    costs, came_over = (0.0, 0.0), []
    for closed in given.tolist():
        from_other = (costs[1] + change, costs[0] + change)
        came_over.append((from_other[0] < costs[0], from_other[1] < costs[1]))
        costs = (min(costs[0], from_other[0]) + closed, min(costs[1], from_other[1]) + (not closed))
    out = np.zeros(len(given), bool)
    side = int(costs[1] < costs[0])
    for t in range(len(given) - 1, -1, -1):
        out[t] = side
        side = 1 - side if came_over[t][side] else side
    return out
