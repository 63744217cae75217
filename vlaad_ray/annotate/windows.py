"""What a VLM is asked about: stretches of an episode, and the pictures that show each. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import MIN_MOVE_M, MIN_TURN_RAD, Displacement

KEY_FRAMES = 5
"""Pictures that show a motion (VLA-AD): one picture cannot tell pulling from pushing."""


@dataclass(frozen=True)
class Window:
    """Frames [first, last) of an episode, about which one question is asked; the answer holds for all of them."""

    kind: str
    """Of the question, a name in kinds.QUESTIONS."""
    first: int
    last: int
    phase: str
    """The phase that the rules say it is: the prompt's anchor."""
    frames: tuple[int, ...]
    """Steps of the pictures shown. Empty: no readable picture, so nothing can be asked."""


def runs(labels: Sequence[str]) -> list[tuple[int, int]]:
    """[first, last) of every run of equal labels."""
    edges = [0, *(t for t in range(1, len(labels)) if labels[t] != labels[t - 1]), len(labels)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def span(proprio: np.ndarray, first: int, last: int) -> Displacement:
    """What the hand did in frames [first, last), the effect of the last action included."""
    return directions.displacement(proprio, first, min(last, len(proprio) - 1))


def goes_somewhere(moved: Displacement) -> bool:
    return bool(np.linalg.norm(moved.xyz) >= MIN_MOVE_M) or abs(moved.yaw) >= MIN_TURN_RAD


def key_frames(pictures: Sequence[int], first: int, last: int, count: int) -> tuple[int, ...]:
    """At most `count` of the pictures in [first, last): the middle one, or spread evenly from the first to the last."""
    inside = [step for step in pictures if first <= step < last]
    if not inside and pictures:  # a window shorter than the interval between pictures: the nearest one shows it
        inside = [min(pictures, key=lambda step: abs(step - (first + last) // 2))]
    if count == 1:
        return tuple(inside[len(inside) // 2 :][:1])
    chosen = np.linspace(0, len(inside) - 1, min(count, len(inside))).round().astype(int)
    return tuple(inside[i] for i in chosen)
