"""Holds every VLM answer against what the robot did: directions against kinematics, descriptions against their phase.

A VLM that says "moving right" while the arm moves left would go straight into training; proprioception knows better.
Verdicts are cautious: where the motion is too small or too oblique to tell, the verdict is "undecidable".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from vlaad_ray import stats
from vlaad_ray.annotate import prompts
from vlaad_ray.annotate.prompts import FINGERS, STILL, TURNS
from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import (
    AXES,
    MIN_FINGER_M,
    MIN_MOVE_M,
    MIN_TURN_RAD,
    SMALL_MOVE_M,
    Displacement,
    Subtask,
)
from vlaad_ray.summaries import AnswersAudit, Judged, Steadiness

Verdict = Literal["agree", "contradict", "undecidable"]

REST_M = 0.005
"""A hand at rest drifts by this much: nearer than that it did not move, whatever is said."""
CLEAR_SHARE, NO_SHARE = 0.3, 0.1
"""A direction that is named beside the main one is right from this share of the main one on, wrong below the other."""
MAIN_SHARE = 0.5
"""A direction may stand alone if its share of the main one is at least this: what directions.words names, too."""
PARTS = frozenset({"handle", "gripper", "hand", "fingers", "finger", "arm", "robot", "object", "thing", "it", "target"})
"""Say nothing about which thing is meant."""


@dataclass(frozen=True)
class Finding:
    """What the audit says of one answer."""

    verdict: Verdict
    """contradict if any part does; else agree if any part does."""
    parts: Mapping[str, Verdict]
    """By what was said: "direction" and "element", or "phase"."""
    reason: str
    """For a person: what speaks against the answer; empty where nothing does."""
    moved: Displacement
    """The evidence: what the hand did in the window, in the base frame."""


def judge_direction(direction: str, moved: Displacement) -> tuple[Verdict, str]:
    """Words of directions.words against a displacement in the same frame."""
    truth = f"it was {directions.words(moved)}"
    if direction in TURNS:
        return _signed(moved.yaw if direction == TURNS[1] else -moved.yaw, MIN_TURN_RAD), truth
    if direction in FINGERS:
        return _signed(moved.width if direction == FINGERS[0] else -moved.width, MIN_FINGER_M), truth
    xyz = np.array(moved.xyz)
    distance = float(np.linalg.norm(xyz))
    if direction == STILL:
        if distance > SMALL_MOVE_M or abs(moved.yaw) > 2 * MIN_TURN_RAD:
            return "contradict", truth
        return ("agree" if distance < MIN_MOVE_M else "undecidable"), truth
    if distance < MIN_MOVE_M:
        return ("contradict" if distance < REST_M else "undecidable"), truth
    signs = directions.axis_signs(direction)
    shares = (xyz * signs / np.abs(xyz).max())[signs != 0]
    if not len(shares) or shares.min() < NO_SHARE or shares.max() < MAIN_SHARE:
        return "contradict", truth
    return ("agree" if shares.min() >= CLEAR_SHARE else "undecidable"), truth


def judge_element(element: str, serving: Sequence[Subtask], instruction: str) -> tuple[Verdict, str]:
    """The thing that a VLM names against those that the instruction names for these frames."""
    named = _content(element)
    expected = [phrase for task in dict.fromkeys(serving) for phrase in (task.thing, task.target) if phrase]
    wrong = f"the task has {' and '.join(expected)} here, not {element}"
    if not named - PARTS or expected == [directions.UNKNOWN.thing, directions.UNKNOWN.target]:
        return "undecidable", wrong
    if any(_same_thing(named, _content(phrase), instruction) for phrase in expected):
        return "agree", wrong
    return "contradict", wrong


def judge_description(description: str, phase: str) -> tuple[Verdict, str]:
    """The word that a description begins with against those that its phase allows."""
    verb = description.split()[0]
    return ("agree" if verb in prompts.verbs(phase) else "contradict"), f"{verb!r} is not part of {phase}"


def summarise(audited: Sequence[Mapping[str, Any]]) -> AnswersAudit:
    """Counts and rates over all windows. Each row: verdict, parts, phase, suite, task, and what `stability` needs.

    The rate of agreement leaves out the undecidable; with it goes its 95 % Wilson interval.
    """
    directed = [row for row in audited if "direction" in row["parts"]]
    parts = sorted({part for row in audited for part in row["parts"]})
    return AnswersAudit(
        **vars(_counts(row["verdict"] for row in audited)),
        parts={part: _counts(row["parts"][part] for row in audited if part in row["parts"]) for part in parts},
        direction_by_axis=_grouped(directed, _axis, "direction"),
        phases=_grouped(audited, lambda row: row["phase"]),
        suites=_grouped(audited, lambda row: row["suite"]),
        tasks=_grouped(audited, lambda row: f"{row['suite']}/{row['task']}"),
        stability=stability(audited),
    )


def stability(rows: Sequence[Mapping[str, Any]]) -> Steadiness:
    """How steady directions are from one window to the next of an episode.

    Of the pairs of neighbours between which kinematics turns (or does not), in how many the answer does the same.
    Rows: episode, direction (base frame; None where it was not asked for), truth; in the order of an episode.
    """
    by_episode: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["direction"] is not None:
            by_episode.setdefault(row["episode"], []).append(row)
    pairs = [(a, b) for episode in by_episode.values() for a, b in pairwise(episode)]
    same = sum(_turns(a["direction"], b["direction"]) == _turns(a["truth"], b["truth"]) for a, b in pairs)
    return Steadiness(len(pairs), same)


def _signed(value: float, threshold: float) -> Verdict:
    """Of a change that should be positive."""
    if value >= threshold:
        return "agree"
    return "undecidable" if value >= threshold / 2 else "contradict"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """contradict if any is; else agree if any is."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("contradict", "agree", "undecidable")
    return next(verdict for verdict in order if verdict in found)


_EMPTY = frozenset({"the", "a", "an", "of", "or", "and", "in", "on", "to", "at", "its", "this", "that", "with"})


def _content(phrase: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", phrase.lower())) - _EMPTY


def _same_thing(named: frozenset[str], expected: frozenset[str], instruction: str) -> bool:
    """Whether two noun phrases may mean one thing: they share a word, and what one adds does not single out another.

    "the drawer" is the middle drawer, "the top drawer" is not; "the white drawer" is, if nothing says otherwise.
    """
    rivals = {"top", "middle", "bottom", "left", "right", "front", "back", "upper", "lower"}
    if not named & expected or (named & rivals) - expected & rivals:
        return False
    others = [_content(phrase) for phrase in prompts.things(instruction)]
    return not any(named & other > named & expected for other in others)


def _axis(row: Mapping[str, Any]) -> str:
    signs = directions.axis_signs(row["direction"])
    found = [AXES[axis][int(sign < 0)] for axis, sign in enumerate(signs) if sign]
    return " and ".join(found) or row["direction"]


def _turns(a: str, b: str) -> bool:
    return bool((directions.axis_signs(a) != directions.axis_signs(b)).any())


def _grouped(rows: Sequence[Mapping[str, Any]], group: Any, part: str | None = None) -> dict[str, Judged]:
    names = sorted({group(row) for row in rows})
    return {
        name: _counts((row["parts"][part] if part else row["verdict"]) for row in rows if group(row) == name)
        for name in names
    }


def _counts(verdicts: Iterable[str]) -> Judged:
    found = list(verdicts)
    agree, contradict = found.count("agree"), found.count("contradict")
    decided = agree + contradict
    return Judged(
        agree=agree,
        contradict=contradict,
        undecidable=len(found) - decided,
        agreement=round(agree / decided, 4) if decided else None,
        wilson95=stats.wilson(agree, decided) if decided else None,
    )
