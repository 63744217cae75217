"""From a window to a prompt and a JSON schema, from an answer's text to an Answer. The words lie in prompts.toml."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from vlaad_ray.annotate.windows import Kind, Window
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
    return tomllib.loads(_source())


def prompt_hash() -> str:
    """8 hex digits over prompts.toml and this module: any change of a word makes new answers."""
    code = resources.files(__package__).joinpath("prompts.py").read_text()
    return hashlib.sha256((_source() + code).encode()).hexdigest()[:8]


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


def messages(window: Window, instruction: str, pictures: Sequence[str], frame: Frame) -> list[dict[str, Any]]:
    """Chat messages in OpenAI's form. pictures: data URIs, in the order of window.frames."""
    prompts = texts()
    phase = prompts["phases"][window.phase]
    text = prompts[window.kind].format(
        instruction=instruction,
        phase=window.phase,
        definition=phase["definition"],
        things=", ".join(things(instruction)),
        verbs=", ".join(phase["verbs"]),
        axes=", ".join(prompts["axes"][frame]),
        words=", ".join((*TURNS, *FINGERS, STILL)),
        frame=prompts["frames"][frame],
        count=len(pictures),
    )
    return [
        {"role": "system", "content": [{"type": "text", "text": prompts["system"].strip()}]},
        {
            "role": "user",
            "content": [
                *({"type": "image_url", "image_url": {"url": picture}} for picture in pictures),
                {"type": "text", "text": text.strip()},
            ],
        },
    ]


@functools.cache
def schema(kind: Kind, frame: Frame) -> str:
    """JSON schema of an answer, as text. It allows every verb, not only the anchor's: else nothing would be told."""
    properties: dict[str, Any]
    if kind == "describe":
        properties = {"description": {"type": "string", "pattern": f"^({'|'.join(vocabulary())}) {PHRASE}$"}}
    else:
        properties = {
            "element": {"type": "string", "pattern": f"^{PHRASE}$"},
            "direction": {"type": "string", "enum": list(direction_words(frame))},
        }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    )


def parse(text: str, finish: str | None, kind: Kind, frame: Frame) -> Answer:
    """An answer's text -> Answer. Held to the schema here too: a server may not constrain its output.

    Raises MalformedAnswer.
    """
    if finish == "length":
        raise MalformedAnswer("cut off")
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        raise MalformedAnswer("not JSON") from None
    wanted = json.loads(schema(kind, frame))["properties"]
    if not isinstance(fields, dict) or set(fields) != set(wanted):
        raise MalformedAnswer("wrong fields")
    for name, rule in wanted.items():
        value = fields[name]
        if not isinstance(value, str):
            raise MalformedAnswer(f"{name} is not text")
        if "enum" in rule and value not in rule["enum"]:
            raise MalformedAnswer(f"{name} outside the vocabulary")
        if "pattern" in rule and re.fullmatch(rule["pattern"], value) is None:
            raise MalformedAnswer(f"{name} outside the vocabulary")
    if kind == "describe":
        return Answer(description=fields["description"].strip())
    return Answer(element=fields["element"].strip(), direction=to_base(fields["direction"], frame))


def _source() -> str:
    return resources.files(__package__).joinpath("prompts.toml").read_text()
