"""Motion in words, from kinematics over many frames, and sentences from phase, motion and instruction.

A single image cannot tell pulling from pushing; the hand's displacement over a window can. Words are in the robot's
base frame: forward is away from the robot (+x), left is its left (+y), up is +z; rotations are seen from above.
The vocabulary is closed and invertible (`axis_signs`), so that words from elsewhere can be held against kinematics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

AXES = (("forward", "backward"), ("left", "right"), ("up", "down"))
"""Words for the positive and negative direction of x, y and z."""
WINDOW_FRAMES = 30
"""A segment longer than this (1.5 s) is described in equal windows: one displacement would hide its turns."""
MIN_MOVE_M = 0.01
"""A hand that ends a window nearer than this to where it began stays still (noise of a hand at rest: 0.005)."""
DOMINANT = 0.5
"""An axis is named if its share is at least this fraction of the largest one's; at most two are."""
SMALL_MOVE_M = 0.03
"""A hand that moves less than this while it turns or its fingers close is said to do that instead."""
MIN_TURN_RAD = 0.15
"""Yaw beyond this is a rotation."""
MIN_FINGER_M = 0.005
"""Change of the gripper's width that counts as opening or closing."""


@dataclass(frozen=True)
class Displacement:
    """What the hand did between two frames."""

    xyz: tuple[float, float, float]
    """Base frame, m."""
    yaw: float = 0.0
    """Rotation about the vertical, rad, counter-clockwise seen from above."""
    width: float = 0.0
    """Change of the distance between the fingers, m."""


@dataclass(frozen=True)
class Subtask:
    """One clause of an instruction: what to do with which thing, and where."""

    kind: Literal["carry", "operate"]
    verb: str
    thing: str
    target: str
    """Empty for an operation in place."""


def displacement(proprio: np.ndarray, first: int, last: int) -> Displacement:
    """Displacement of the hand from frame `first` to `last` (inclusive) of proprioception [T, 8]."""
    x, y, z = (float(v) for v in proprio[last, :3] - proprio[first, :3])
    width = np.abs(proprio[[first, last], -2:]).sum(axis=1)
    turn = _rotation(proprio[last, 3:6]) @ _rotation(proprio[first, 3:6]).T
    yaw = float(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
    return Displacement((x, y, z), yaw, float(width[1] - width[0]))


def words(moved: Displacement) -> str:
    """A displacement in the closed vocabulary: "moving left and down", "rotating clockwise", "staying still" …"""
    xyz = np.array(moved.xyz)
    distance = float(np.linalg.norm(xyz))
    if abs(moved.yaw) > MIN_TURN_RAD and distance < SMALL_MOVE_M:
        return "rotating counter-clockwise" if moved.yaw > 0 else "rotating clockwise"
    if abs(moved.width) > MIN_FINGER_M and distance < SMALL_MOVE_M:
        return "opening the gripper" if moved.width > 0 else "closing the gripper"
    if distance < MIN_MOVE_M:
        return "staying still"
    largest = np.abs(xyz).max()
    order = [axis for axis in np.argsort(-np.abs(xyz), kind="stable") if abs(xyz[axis]) >= DOMINANT * largest]
    return "moving " + " and ".join(AXES[axis][int(xyz[axis] < 0)] for axis in order[:2])


def axis_signs(text: str) -> np.ndarray:
    """Words -> expected sign of the displacement along x, y, z: [3] int8 of -1, 0 (not claimed) or +1.

    Reads any text that uses the words of AXES; an axis claimed both ways counts as not claimed.
    """
    found = set(re.findall(r"[a-z]+", text.lower()))
    return np.array([(plus in found) - (minus in found) for plus, minus in AXES], np.int8)


def directions(segments: np.ndarray, proprio: np.ndarray) -> tuple[str, ...]:
    """[T] segment numbers and [T, 8] proprioception -> [T] words, one text a window of at most WINDOW_FRAMES."""
    texts: list[str] = []
    for number in np.unique(segments):
        frames = np.flatnonzero(segments == number)
        for window in np.array_split(frames, -(-len(frames) // WINDOW_FRAMES)):
            last = min(int(window[-1]) + 1, len(segments) - 1)  # where the window's last action led
            texts += [words(displacement(proprio, int(window[0]), last))] * len(window)
    return tuple(texts)


# ------------------------------------------------------------------------------------------------------- instructions

_VERBS = "pick up|place|put|stack|push|pull|slide|open|close|turn on|turn off"
_CLAUSE = re.compile(rf"^({_VERBS}) (.+)$")
_NEXT_CLAUSE = re.compile(rf" and (?=(?:{_VERBS}) )")
_RELATION = re.compile(r" (on top of|to|inside|into|in|on|under|onto)(?: |$)")
_WHERE = re.compile(r"(?<!right)(?<!left)(?<!front)(?<!back) (?:between|next to|from|on|in|at|of) .*$")
"""What only says which one is meant: "the black bowl next to the plate" is "the black bowl" in a description, but "the
right of the plate" is a place."""
UNKNOWN = Subtask("carry", "move", "the object", "the target")


def parse(instruction: str) -> tuple[Subtask, ...]:
    """The clauses of a LIBERO instruction, in order; one vague subtask when the grammar does not know it."""
    subtasks: list[Subtask] = []
    picked, named = "", ""
    for clause in _NEXT_CLAUSE.split(" ".join(instruction.lower().strip(" .").split())):
        match = _CLAUSE.match(clause)
        if match is None:
            continue
        verb, rest = match.groups()
        if verb == "pick up":
            picked = _short(rest)
            continue
        if verb in ("open", "close", "turn on", "turn off"):
            thing = named if rest == "it" else _short(rest)
            subtasks.append(Subtask("operate", verb, thing, ""))
            named = thing
            continue
        thing, target = _split(rest)
        thing = (picked or named) if thing in ("it", "them") else _short(thing)
        target = named if target in ("it", "") else _short(target)
        subtasks.append(Subtask("operate" if verb in ("push", "pull", "slide") else "carry", verb, thing, target))
        named = target
    if picked and not subtasks:
        subtasks.append(Subtask("carry", "pick up", picked, ""))
    return tuple(subtasks) or (UNKNOWN,)


def _split(rest: str) -> tuple[str, str]:
    """Thing and target: "the bowl on the plate" -> ("the bowl", "the plate")."""
    match = _RELATION.search(f"{rest} ")
    if match is None:
        return rest, ""
    return rest[: match.start()], rest[match.end() :].strip()


def _short(phrase: str) -> str:
    """A noun phrase without what merely locates it; of several things, "A or B": which comes first is not known."""
    if phrase.startswith("both the "):
        return phrase.removeprefix("both ").replace(" and ", " or ")
    if phrase.startswith("both "):
        return "a " + phrase.removeprefix("both ").removesuffix("s")
    return _WHERE.sub("", phrase)


# ------------------------------------------------------------------------------------------------------- descriptions

_CLAUSES = {
    "idle": "waiting",
    "resting": "waiting",
    "approaching": "reaching for {thing}",
    "reaching": "reaching for {thing}",
    "aligning": "lining up with {thing}",
    "grasping": "taking hold of {thing}",
    "lifting": "lifting {thing}",
    "transporting": "carrying {thing}",
    "carrying": "carrying {thing}",
    "holding": "holding {thing}",
    "placing": "putting down {thing}",
    "lowering": "lowering {thing}",
    "releasing": "letting go of {thing}",
    "operating": "{doing} {thing}",
    "regrasping": "backing off to grasp {thing} again",
    "manipulating": "handling {thing}",
    "retreating": "done, moving away",
    "completed": "done",
}
_TOWARD_TARGET = ("transporting", "carrying", "placing", "lowering", "manipulating")
_DOING = {
    "open": "opening",
    "close": "closing",
    "turn on": "turning on",
    "turn off": "turning off",
    "push": "pushing",
    "pull": "pulling",
    "slide": "sliding",
}


def describe(phase: str, direction: str, subtask: Subtask) -> str:
    """One short sentence: "transporting: carrying the milk, moving right and up toward the basket".

    `phase` may come from any taxonomy. It anchors the sentence: equal phases are always told in equal words.
    """
    clause = _CLAUSES[phase].format(thing=subtask.thing, doing=_DOING.get(subtask.verb, "moving"))
    sideways_or_down = direction.startswith("moving") and direction != "moving up"
    toward = f" toward {subtask.target}" if sideways_or_down and subtask.target and phase in _TOWARD_TARGET else ""
    return f"{phase}: {clause}, {direction}{toward}"


def subtasks_by_frame(phases9: Sequence[str], instruction: str) -> list[Subtask]:
    """Which clause of the instruction each of T frames serves, by counting what was carried and what was operated.

    An approach belongs to what follows it; what comes after the last release belongs to it.
    """
    clauses = parse(instruction)
    units: list[tuple[int, str]] = []  # (end, kind) of each carry or operation
    for t, phase in enumerate(phases9):
        ends = t + 1 == len(phases9) or phases9[t + 1] != phase
        if ends and phase in ("placing", "operating"):
            units.append((t + 1, "operate" if phase == "operating" else "carry"))
    out: list[Subtask] = []
    counts = {"carry": 0, "operate": 0}
    for end, kind in units:
        same = [clause for clause in clauses if clause.kind == kind] or list(clauses)
        out += [same[min(counts[kind], len(same) - 1)]] * (end - len(out))
        counts[kind] += 1
    rest = out[-1] if out and set(phases9[len(out) :]) <= {"completed"} else clauses[min(len(units), len(clauses) - 1)]
    return out + [rest] * (len(phases9) - len(out))


def _rotation(axis_angle: np.ndarray) -> np.ndarray:
    """Axis-angle [3] rad -> rotation matrix [3, 3] (Rodrigues)."""
    angle = float(np.linalg.norm(axis_angle))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = axis_angle / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
