"""How noisy a teacher's targets are, step by step: flips of the gripper that it takes back, jerk, stalls. Pure numpy.

The formulas, with what they were checked on, are in docs/noise.md.
"""

from __future__ import annotations

import numpy as np

from vlaad_ray.semantics.phases import MIN_COMMAND_FRAMES
from vlaad_ray.types import CONTROL_HZ

LONGEST_FLIP = MIN_COMMAND_FRAMES - 1
"""A gripper command of up to this many steps that is then taken back was not meant. Two steps open by 7 mm at most."""
STILL_ACTION = 0.02
"""A target below this in all six motion components asks for no motion: under 0.3 mm and 3 mrad a step."""


def sides(commands: np.ndarray) -> np.ndarray:
    """[T] gripper commands -> [T] bool, closed. A command of 0 keeps the side before it; a leading one is open."""
    signs = np.sign(np.asarray(commands, np.float64))
    last_clear = np.maximum.accumulate(np.where(signs != 0, np.arange(len(signs)), -1))
    return (signs[last_clear] > 0) & (last_clear >= 0)


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


def asked_jerk(actions: np.ndarray) -> np.ndarray:
    """[T, 7] actions -> [T] size of the third difference of the commanded path, NaN at both ends.

    An action's translation is the path's first difference, so this is |a[t+1] - 2 a[t] + a[t-1]|, in full-scale actions
    a step squared. White noise of standard deviation s on each axis alone has a root mean square of sqrt(18) s = 4.2 s.
    """
    jerk = np.full(len(actions), np.nan)
    jerk[1:-1] = np.linalg.norm(np.diff(np.asarray(actions[:, :3], float), n=2, axis=0), axis=1)
    return jerk


def moved_jerk(proprio: np.ndarray) -> np.ndarray:
    """[T, 8] proprioception -> [T] size of the third difference of the hand's position, m/s^3, NaN where unknown.

    What the robot went through, executed-action noise included.
    """
    jerk = np.full(len(proprio), np.nan)
    jerk[2:-1] = np.linalg.norm(np.diff(np.asarray(proprio[:, :3], float), n=3, axis=0), axis=1) * CONTROL_HZ**3
    return jerk


def stalled(actions: np.ndarray) -> np.ndarray:
    """[T, 7] actions -> [T] bool: the target asks for no motion of the hand."""
    return np.abs(actions[:, :6]).max(axis=1, initial=0.0) < STILL_ACTION


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
