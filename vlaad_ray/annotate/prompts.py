"""The words in which a VLM is asked and may answer. They lie in prompts.toml."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from vlaad_ray.annotate.windows import Window
from vlaad_ray.semantics import directions

Frame = Literal["viewer", "base"]
"""Whose left and right a VLM is asked for: those of the picture (which people and VLMs mean), or the robot's own."""
BASE_AXES = ("forward", "backward", "left", "right", "up", "down")
STILL = "staying still"
TURNS = ("rotating clockwise", "rotating counter-clockwise")
FINGERS = ("opening the gripper", "closing the gripper")
PHRASE = "[a-z][a-z ,'-]{1,60}"


class MalformedAnswer(ValueError):
    """An answer that breaks the schema; its text is the reason, in few words, for counting."""


@dataclass(frozen=True)
class Answer:
    """What a VLM said of one window: a description, or an element and a direction."""

    description: str | None = None
    """Short clause that begins with a word of the controlled vocabulary."""
    element: str | None = None
    """The thing that moves or is gone to."""
    direction: str | None = None
    """In the words of directions.words: the robot's base frame, whatever frame was asked for."""


@functools.cache
def texts() -> dict[str, Any]:
    return tomllib.loads(source())


def verbs(phase: str) -> tuple[str, ...]:
    """The words with which a description of this phase may begin."""
    return tuple(texts()["phases"][phase]["verbs"])


def vocabulary() -> tuple[str, ...]:
    """Every word with which a description may begin, whatever the phase."""
    return tuple(sorted({verb for phase in texts()["phases"] for verb in verbs(phase)}))


def things(instruction: str) -> tuple[str, ...]:
    """The noun phrases of an instruction."""
    named = [phrase for task in directions.parse(instruction) for phrase in (task.thing, task.target) if phrase]
    return tuple(dict.fromkeys(named))


def direction_words(frame: Frame) -> tuple[str, ...]:
    """All answers to "which way", in the words of `frame`: single axes, pairs of them, turns, fingers, rest."""
    axes = texts()["axes"][frame]
    pairs = [f"{a} and {b}" for i, a in enumerate(axes) for j, b in enumerate(axes) if i // 2 != j // 2]
    return tuple(f"moving {words}" for words in (*axes, *pairs)) + TURNS + FINGERS + (STILL,)


def to_base(direction: str, frame: Frame) -> str:
    """A direction in the words of `frame` -> the same in those of the robot's base frame."""
    meaning = dict(zip(texts()["axes"][frame], BASE_AXES, strict=True))
    return " ".join(meaning.get(word, word) for word in direction.split())


def from_base(direction: str, frame: Frame) -> str:
    meaning = dict(zip(BASE_AXES, texts()["axes"][frame], strict=True))
    return " ".join(meaning.get(word, word) for word in direction.split())


def fill(kind: str, window: Window, instruction: str, frame: Frame) -> str:
    """The text of prompts.toml for a kind of question, about one window."""
    prompts = texts()
    phase = prompts["phases"][window.phase]
    text: str = prompts[kind].format(
        instruction=instruction,
        phase=window.phase,
        definition=phase["definition"],
        things=", ".join(things(instruction)),
        verbs=", ".join(phase["verbs"]),
        axes=", ".join(prompts["axes"][frame]),
        words=", ".join((*TURNS, *FINGERS, STILL)),
        frame=prompts["frames"][frame],
        count=len(window.frames),
    )
    return text


def source() -> str:
    """prompts.toml."""
    return resources.files(__package__).joinpath("prompts.toml").read_text()
