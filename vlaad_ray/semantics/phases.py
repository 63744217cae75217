"""Phases of a manipulation episode from proprioception alone, and the taxonomies of 3 to 13 phases.

The classifier is offline: it knows the whole episode, finds the times at which the gripper closed, decides what each
closure was (carrying, operating, a failed grasp) and labels the frames between. It needs no object poses, so it runs on
real robots' logs too. VLA-AD (arXiv 2605.16241) names the nine phases and the inputs, not the thresholds: those below
were tuned on episodes from init states 0-19 and measured on others (docs/phases.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from vlaad_ray.types import CONTROL_HZ

PHASES = (
    "idle",
    "approaching",
    "grasping",
    "transporting",
    "holding",
    "placing",
    "operating",
    "regrasping",
    "completed",
)

# One row a label of the finest taxonomy, one column a taxonomy: a finer label has exactly one coarser one.
_TABLE = """
    13            11            9             7             5             3
    idle          idle          idle          idle          resting       resting
    reaching      approaching   approaching   approaching   approaching   approaching
    aligning      approaching   approaching   approaching   approaching   approaching
    grasping      grasping      grasping      grasping      grasping      manipulating
    lifting       lifting       transporting  transporting  carrying      manipulating
    transporting  transporting  transporting  transporting  carrying      manipulating
    holding       holding       holding       transporting  carrying      manipulating
    lowering      lowering      placing       placing       carrying      manipulating
    releasing     releasing     placing       placing       carrying      manipulating
    operating     operating     operating     operating     operating     manipulating
    regrasping    regrasping    regrasping    grasping      grasping      manipulating
    retreating    completed     completed     completed     resting       resting
    completed     completed     completed     completed     resting       resting
"""
_COLUMNS, *_ROWS = [line.split() for line in _TABLE.strip().splitlines()]
_COARSER = {int(column): [row[i] for row in _ROWS] for i, column in enumerate(_COLUMNS)}

# Thresholds in metres, frames (20 a second) and metres a second. A full-scale action moves the hand at about
# 0.25 m/s; executed-action noise of sigma 0.3 shakes a hand at rest by about 0.02 m and 0.05 m/s after smoothing.
SMOOTHING_FRAMES = 5
"""Moving average over positions before differencing: a quarter of a second. 7 and 9 blur the starts of lift and retreat
more than they gain under noise."""
MIN_COMMAND_FRAMES = 4
"""A gripper command shorter than this never moves the fingers noticeably: a self-revoked flip, not an event."""
EMPTY_WIDTH_M = 0.003
"""Fingers closed on nothing stop at 0.001-0.0025; a bowl's rim, the thinnest thing in LIBERO, leaves 0.0037 or more."""
SETTLED_WIDTH_M = 0.001
"""Fingers that move less than this a frame have stopped closing (they close at 0.004 and more)."""
STILL_M_S = 0.02
"""Below this the hand is practically still."""
MOVING_M_S = 0.05
"""Above this the hand is on its way: a lift, a retreat."""
LIFT_M = 0.03
"""A carried object rises at least this much; a drawer, a knob or a plate under the hand does not."""
CLOSING_FRAMES = 20
"""Fingers that meet nothing are shut after this many frames; later, something has slipped out of them."""
TURN_RAD = 0.3
"""A closed hand that turns this far without rising turns a knob (0.7 and more); a grasp in place stays below 0.1."""
PUSH_M = 0.15
"""A hand that closed on nothing and then goes this far is not failing to grasp but about to push."""
BACK_OFF_M = 0.03
"""An open hand that rises this far without moving half as far sideways is backing off, not clearing an obstacle."""
START_M = 0.005
"""The lift, or the retreat, has begun once the hand is this far from where it closed or opened."""
PLACE_RADIUS_M = 0.028
"""Final descent: nearer than this, sideways, to where it lets go."""
TRAVEL_M_S = 0.15
"""A hand that is faster than this while its fingers shut is not closing them on anything."""
MIN_HOLD_FRAMES = 6
"""A stop in mid-carry shorter than this is part of the carry."""
MIN_PHASE_FRAMES = 3
"""A shorter run of a label is a flicker and joins its predecessor."""
ALIGN_M = 0.08
"""The last part of an approach, within this distance of its end."""
OPERATING_VERBS = re.compile(r"\b(open|close|turn|push|pull|slide|press)\b")
"""Only an instruction with one of these can contain an operation that is not a carry."""


@dataclass(frozen=True)
class Motion:
    """Smoothed kinematics of an episode of T frames."""

    position: np.ndarray
    """[T, 3] m."""
    velocity: np.ndarray
    """[T, 3] m/s."""
    heading: np.ndarray
    """[T] rad, yaw of the hand seen from above, without jumps. Means nothing for a level hand."""
    width: np.ndarray
    """[T] distance between the fingers, m: 0.08 open."""
    closed: np.ndarray
    """[T] bool: the gripper is told to close."""

    @property
    def speed(self) -> np.ndarray:
        return np.linalg.norm(self.velocity, axis=1)


@dataclass(frozen=True)
class Closure:
    """The gripper is told to close at frame `start` and to open at `stop` (T when it never does)."""

    start: int
    stop: int
    kind: Literal["carry", "operate", "push", "miss"]


def motion(proprio: np.ndarray, gripper: np.ndarray | None = None) -> Motion:
    """Kinematics from proprioception [T, 8] and the gripper commands [T] (positive closes).

    Without commands the closing state is read off the finger width.
    """
    position = _smooth(np.asarray(proprio[:, :3], float))
    velocity = np.gradient(position, axis=0) * CONTROL_HZ if len(position) > 1 else np.zeros_like(position)
    width = np.abs(proprio[:, -2:]).sum(axis=1).astype(float)
    closed = _closed_by_width(width) if gripper is None else np.asarray(gripper) > 0
    return Motion(position, velocity, _heading(proprio[:, 3:6]), width, _drop_short_runs(closed, MIN_COMMAND_FRAMES))


def classify(proprio: np.ndarray, gripper: np.ndarray | None, instruction: str) -> tuple[str, ...]:
    """[T, 8] proprioception, [T] gripper commands (or None) -> [T] labels of the nine PHASES."""
    if len(proprio) == 0:
        return ()
    m = motion(proprio, gripper)
    labels = np.full(len(proprio), "approaching", dtype=object)
    labels[: _first(m.speed > STILL_M_S, 0, len(labels))] = "idle"
    events = closures(m, bool(OPERATING_VERBS.search(instruction.lower())))
    for closure in events:
        _label_closure(labels, m, closure)
    _label_given_up_approaches(labels, m)
    if events and events[-1].kind != "miss":
        tail = _retreat(m, events[-1].stop) if events[-1].kind != "push" else _stroke(m, events[-1])[1]
        labels[tail:] = "completed"
    return tuple(_without_flicker(labels))


def closures(m: Motion, may_operate: bool) -> list[Closure]:
    """Every closing of the gripper and what it was for. `may_operate`: the instruction names an operation."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], m.closed.astype(int), [0]])))
    return [
        Closure(int(start), int(stop), _kind(m, int(start), int(stop), may_operate))
        for start, stop in edges.reshape(-1, 2)
    ]


def _kind(m: Motion, start: int, stop: int, may_operate: bool) -> Literal["carry", "operate", "push", "miss"]:
    path = m.position[start:stop] - m.position[start]
    empty = m.width[stop - 1] < EMPTY_WIDTH_M
    moved = np.linalg.norm(path, axis=1)
    shut = m.width[start:stop][:CLOSING_FRAMES].min() < EMPTY_WIDTH_M
    if may_operate and shut and (m.speed[start:stop][:CLOSING_FRAMES].mean() > TRAVEL_M_S or moved.max() > PUSH_M):
        return "push"
    turned = np.abs(m.heading[start:stop] - m.heading[start]).max()
    if may_operate and path[:, 2].max() < LIFT_M and (moved.max() > LIFT_M or turned > TURN_RAD):
        return "operate"
    let_go_in_the_air = path[-1, 2] > path[:, 2].max() - START_M and np.linalg.norm(path[-1, :2]) < LIFT_M
    return "miss" if empty or (let_go_in_the_air and stop < len(m.position)) else "carry"


def _label_closure(labels: np.ndarray, m: Motion, closure: Closure) -> None:
    """Write the labels of one closure and what follows it, up to the next approach."""
    start, stop = closure.start, closure.stop
    retreat = _retreat(m, stop)
    if closure.kind == "operate":
        labels[start:retreat] = "operating"
    elif closure.kind == "push":
        begin, end = _stroke(m, closure)
        labels[begin:end] = "operating"
    else:
        lift = _lift(m, start, stop)
        labels[start:lift] = "grasping"
        labels[lift:stop] = "transporting"
        if closure.kind == "miss":
            labels[stop : _next_approach(m, stop)] = "regrasping"
        else:
            descent = _descent(m, lift, stop) if stop < len(labels) else stop
            for first, last in _runs(m.speed[lift:descent] < STILL_M_S):
                if last - first >= MIN_HOLD_FRAMES:
                    labels[lift + first : lift + last] = "holding"
            labels[descent:retreat] = "placing"


def _label_given_up_approaches(labels: np.ndarray, m: Motion) -> None:
    """An open hand that stops on its way and backs straight up has failed to grasp, though it never closed."""
    for first, last in _runs((labels == "approaching") & ~m.closed):
        for begin, end in _runs(m.velocity[first:last, 2] > STILL_M_S):
            gone = np.abs(m.position[first + end - 1] - m.position[first + begin])
            if begin > MIN_COMMAND_FRAMES and gone[2] > BACK_OFF_M and gone[:2].max() < BACK_OFF_M / 2:
                labels[first + begin - MIN_COMMAND_FRAMES : first + end] = "regrasping"


def _lift(m: Motion, start: int, stop: int) -> int:
    """First frame after closing at which the fingers have stopped and the hand has begun to leave."""
    settled = np.abs(np.gradient(m.width)) < SETTLED_WIDTH_M if len(m.width) > 1 else np.ones(1, bool)
    away = np.linalg.norm(m.position - m.position[start], axis=1) > START_M
    rising = m.velocity[:, 2] > MOVING_M_S
    return _first(settled & (rising | (away & (m.speed > MOVING_M_S))), start + MIN_COMMAND_FRAMES, stop)


def _descent(m: Motion, lift: int, stop: int) -> int:
    """Start of the final descent before the release at `stop`."""
    horizontal = np.linalg.norm(m.position[lift:stop, :2] - m.position[stop, :2], axis=1)
    far = np.flatnonzero(horizontal > PLACE_RADIUS_M)
    return lift + int(far[-1]) + 1 if len(far) else lift


def _retreat(m: Motion, stop: int) -> int:
    """First frame after a release at which the hand has begun to leave."""
    if stop >= len(m.position):
        return len(m.position)
    away = np.linalg.norm(m.position - m.position[stop], axis=1) > START_M
    return _first(away & (m.speed > MOVING_M_S), stop + MIN_COMMAND_FRAMES, len(m.position))


def _next_approach(m: Motion, stop: int) -> int:
    """End of the move away from a failed grasp: the hand has risen and stops rising."""
    risen = _first(m.velocity[:, 2] > MOVING_M_S, stop, len(m.position))
    return _first(m.velocity[:, 2] < STILL_M_S, risen, len(m.position))


def _stroke(m: Motion, closure: Closure) -> tuple[int, int]:
    """First and last frame of a push with the shut hand: from where it sets off to where it goes furthest."""
    start, stop = closure.start, closure.stop
    height = m.position[start:stop, 2]
    low = start + int(np.argmax(height < height.min() + START_M))
    away = m.position[low:stop, :2] - m.position[low, :2]
    end = low + int(np.argmax(np.linalg.norm(away, axis=1)))
    ahead = m.velocity[:, :2] @ (away[end - low] / max(float(np.linalg.norm(away[end - low])), 1e-9))
    waiting = np.flatnonzero(ahead[start : max(start, end - MIN_PHASE_FRAMES)] < STILL_M_S)
    return start + int(waiting[-1]) + 1 if len(waiting) else start, end + 1


def relabel(phases9: tuple[str, ...], proprio: np.ndarray, taxonomy: int) -> tuple[str, ...]:
    """Labels [T] of another taxonomy (3, 5, 7, 9, 11 or 13) from those of the nine and proprioception [T, 8]."""
    if len(phases9) == 0:
        return ()
    coarser = dict(zip(_COARSER[13], _COARSER[taxonomy], strict=True))
    return tuple(coarser[label] for label in _finest(phases9, proprio))


def names(taxonomy: int) -> tuple[str, ...]:
    """The labels of a taxonomy, in the order of an episode."""
    return tuple(dict.fromkeys(_COARSER[taxonomy]))


def coarsen(label: str, finer: int, coarser: int) -> str:
    """The one label of the coarser taxonomy that holds this one of the finer."""
    (found,) = {b for a, b in zip(_COARSER[finer], _COARSER[coarser], strict=True) if a == label}
    return found


def segments(labels: tuple[str, ...]) -> np.ndarray:
    """[T] int32: number of the run of equal labels that a frame belongs to, from 0."""
    changed = [0, *(int(a != b) for a, b in zip(labels[1:], labels[:-1], strict=True))][: len(labels)]
    return np.cumsum(changed, dtype=np.int32)


def _finest(phases9: tuple[str, ...], proprio: np.ndarray) -> list[str]:
    """Labels of the 13 from those of the nine: approach, carry, placing and the end are split by kinematics."""
    m = motion(proprio)
    finest = list(phases9)
    for first, last in _runs(segments(phases9)):
        position, label = m.position[first:last], phases9[first]
        if label == "approaching":
            near = np.linalg.norm(position - position[-1], axis=1) < ALIGN_M
            split, parts = _last_start(near), ("reaching", "aligning")
        elif label == "transporting":
            rising = m.velocity[first:last, 2] > np.linalg.norm(m.velocity[first:last, :2], axis=1)
            split, parts = _first(~rising, _first(rising, 0, 3), last - first), ("lifting", "transporting")
        elif label == "placing":
            opening = m.width[first:last] > m.width[first:last].min() + 2 * SETTLED_WIDTH_M
            split, parts = _last_start(opening), ("lowering", "releasing")
        elif label == "completed":
            split = _first(m.speed[first:last] < STILL_M_S, MIN_COMMAND_FRAMES, last - first)
            parts = ("retreating", "completed")
        else:
            continue
        finest[first:last] = [parts[0]] * split + [parts[1]] * (last - first - split)
    return finest


def _heading(axis_angle: np.ndarray) -> np.ndarray:
    """[T, 3] axis-angle (rad) -> [T] direction of the hand's x axis from above, rad, unwrapped (Rodrigues' formula)."""
    angle = np.linalg.norm(axis_angle, axis=1)
    x, y, z = (axis_angle / np.maximum(angle, 1e-9)[:, None]).T
    versine = 1 - np.cos(angle)
    return np.unwrap(np.arctan2(z * np.sin(angle) + versine * x * y, np.cos(angle) + versine * x * x))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average along axis 0, edges repeated."""
    half = SMOOTHING_FRAMES // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.stack(
        [np.convolve(column, np.ones(SMOOTHING_FRAMES) / SMOOTHING_FRAMES, "valid") for column in padded.T], 1
    )


def _closed_by_width(width: np.ndarray) -> np.ndarray:
    """[T] finger width -> [T] bool: closing or closed, by the sign of the last clear finger motion."""
    change = np.diff(width, prepend=width[:1])
    state, closed = bool(width[0] < EMPTY_WIDTH_M), np.zeros(len(width), bool)
    for t, delta in enumerate(change):
        if abs(delta) > SETTLED_WIDTH_M:
            state = bool(delta < 0)
        closed[t] = state
    return closed


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of every run: of True for booleans, of equal values otherwise."""
    if len(values) == 0:
        return []
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    pairs = list(pairwise(edges))
    return [pair for pair in pairs if values[pair[0]]] if values.dtype == bool else pairs


def _drop_short_runs(values: np.ndarray, frames: int) -> np.ndarray:
    """Boolean runs shorter than `frames` take the value before them; the first run always stays."""
    out = values.copy()
    for first, last in _runs(values.astype(int))[1:]:
        if last - first < frames and last < len(values):
            out[first:last] = out[first - 1]
    return out


def _without_flicker(labels: np.ndarray) -> list[str]:
    out = labels.tolist()
    for first, last in _runs(segments(tuple(out)))[1:]:
        if last - first < MIN_PHASE_FRAMES and last < len(out):
            out[first:last] = [out[first - 1]] * (last - first)
    return out


def _first(condition: np.ndarray, begin: int, end: int) -> int:
    """First index in [begin, end) where the condition holds, else `end`."""
    hits = np.flatnonzero(condition[begin:end])
    return begin + int(hits[0]) if len(hits) else end


def _last_start(condition: np.ndarray) -> int:
    """Where the run of True that reaches the end begins; the length when the end is False."""
    misses = np.flatnonzero(~condition)
    return int(misses[-1]) + 1 if len(misses) else 0
