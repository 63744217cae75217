"""What a VLM is asked about: stretches of an episode, and the pictures that show each. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import MIN_MOVE_M, MIN_TURN_RAD, Displacement

KEY_FRAMES = 5
"""Pictures that show a motion (VLA-AD): one picture cannot tell pulling from pushing."""

Kind = Literal["describe", "direct"]
"""describe: one picture -> a short description. direct: key frames -> what moves, and which way."""


@dataclass(frozen=True)
class Window:
    """Frames [first, last) of an episode, about which one question is asked; the answer holds for all of them."""

    kind: Kind
    first: int
    last: int
    phase: str
    """The phase that the rules say it is: the prompt's anchor."""
    frames: tuple[int, ...]
    """Steps of the pictures shown. Empty: no readable picture, so nothing can be asked."""


def plan(
    labels: Sequence[str],
    nine: Sequence[str],
    proprio: np.ndarray,
    pictures: Sequence[int],
    every: int,
    moving: bool,
) -> list[Window]:
    """All windows of one episode of T frames, in order.

    labels, nine: [T] phases of the chosen taxonomy and of the nine. proprio: [T, 8]. pictures: steps with a readable
    picture. every: 0 asks once a segment, n for every n frames. moving: ask for the direction of every segment in
    which the hand goes somewhere, not only of operating ones.
    """
    windows = []
    for first, last in runs(labels):
        length = every or last - first
        for start in range(first, last, length):
            stop = min(start + length, last)
            windows.append(Window("describe", start, stop, labels[start], key_frames(pictures, start, stop, 1)))
    for first, last in runs(nine):
        if nine[first] == "operating" or (moving and goes_somewhere(span(proprio, first, last))):
            windows.append(Window("direct", first, last, labels[first], key_frames(pictures, first, last, KEY_FRAMES)))
    return sorted(windows, key=lambda window: (window.first, window.kind))


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
