"""What there is to know of a kind of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaad_ray.annotate.check import Verdict
from vlaad_ray.annotate.prompts import Answer, Frame
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import VlmConfig
from vlaad_ray.semantics.directions import Displacement, Subtask


@dataclass(frozen=True)
class Scene:
    """An episode of T frames, as far as it decides what is asked."""

    labels: Sequence[str]
    """[T] phases of the chosen taxonomy."""
    nine: Sequence[str]
    """[T] the nine phases."""
    proprio: np.ndarray
    """[T, 8]"""
    pictures: Sequence[int]
    """Steps with a readable picture."""


@dataclass(frozen=True)
class Evidence:
    """What an answer is held against."""

    moved: Displacement
    """What the hand did in the window, in the base frame."""
    serving: Sequence[Subtask]
    """The clause of the instruction that each frame of the window serves."""
    instruction: str


@dataclass(frozen=True)
class Question:
    """A kind of question. Its answer's `direction` and `description` become those of all frames of the window."""

    asked: Callable[[Scene, VlmConfig], list[Window]]
    """When it is asked, and about which frames and pictures."""
    text: Callable[[Window, str, Frame], str]
    """The prompt, from the window and the instruction. It says in which form to answer."""
    fields: Callable[[Frame], dict[str, Any]]
    """Of the answer, all texts: name -> JSON schema, with an "enum" or a "pattern"."""
    read: Callable[[Mapping[str, str], Frame], Answer]
    """From fields that keep to that schema."""
    judge: Callable[[Window, Answer, Evidence], Mapping[str, tuple[Verdict, str]]]
    """Part of what was said -> the verdict on it, and what speaks against it."""
