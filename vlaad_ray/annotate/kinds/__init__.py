"""What a VLM may be asked, by kind, and what is the same for all kinds. A new one is one file and one line here."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from vlaad_ray import plugins
from vlaad_ray.annotate import check, prompts
from vlaad_ray.annotate.check import Finding
from vlaad_ray.annotate.kinds.describe import DESCRIBE
from vlaad_ray.annotate.kinds.direct import DIRECT
from vlaad_ray.annotate.kinds.kind import Evidence, Question, Scene
from vlaad_ray.annotate.prompts import Answer, Frame, MalformedAnswer
from vlaad_ray.annotate.windows import Window, span
from vlaad_ray.configs import VlmConfig
from vlaad_ray.semantics.directions import Subtask

QUESTIONS: dict[str, Question] = {
    "describe": DESCRIBE,
    "direct": DIRECT,
}


def plan(scene: Scene, vlm: VlmConfig) -> list[Window]:
    """All windows of one episode, in order."""
    windows = [window for question in QUESTIONS.values() for window in question.asked(scene, vlm)]
    return sorted(windows, key=lambda window: (window.first, window.kind))


def find(kind: str) -> Question:
    """The question of this kind, a plugin's if need be: Ray's workers may not have met it."""
    return plugins.lookup("kind of question", QUESTIONS, kind)


def messages(window: Window, instruction: str, pictures: Sequence[str], frame: Frame) -> list[dict[str, Any]]:
    """Chat messages in OpenAI's form. pictures: data URIs, in the order of window.frames."""
    text = find(window.kind).text(window, instruction, frame)
    return [
        {"role": "system", "content": [{"type": "text", "text": prompts.texts()["system"].strip()}]},
        {
            "role": "user",
            "content": [
                *({"type": "image_url", "image_url": {"url": picture}} for picture in pictures),
                {"type": "text", "text": text.strip()},
            ],
        },
    ]


@functools.cache
def schema(kind: str, frame: Frame) -> str:
    """JSON schema of an answer, as text."""
    fields = find(kind).fields(frame)
    return json.dumps({"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False})


def prompt_hash() -> str:
    """8 hex digits over prompts.toml and the schemas of all kinds: what a VLM was told, but for the windows."""
    schemas = [schema(kind, frame) for kind in QUESTIONS for frame in get_args(Frame)]
    return hashlib.sha256(json.dumps([prompts.source(), *schemas]).encode()).hexdigest()[:8]


def parse(text: str, finish: str | None, kind: str, frame: Frame) -> Answer:
    """An answer's text -> Answer. Held to the schema here too: a server may not constrain its output.

    Raises MalformedAnswer.
    """
    if finish == "length":
        raise MalformedAnswer("cut off")
    try:
        said = json.loads(text)
    except json.JSONDecodeError:
        raise MalformedAnswer("not JSON") from None
    wanted = json.loads(schema(kind, frame))["properties"]
    if not isinstance(said, dict) or set(said) != set(wanted):
        raise MalformedAnswer("wrong fields")
    for name, rule in wanted.items():
        value = said[name]
        if not isinstance(value, str):
            raise MalformedAnswer(f"{name} is not text")
        if "enum" in rule and value not in rule["enum"]:
            raise MalformedAnswer(f"{name} outside the vocabulary")
        if "pattern" in rule and re.fullmatch(rule["pattern"], value) is None:
            raise MalformedAnswer(f"{name} outside the vocabulary")
    return find(kind).read(said, frame)


def judge(
    window: Window, answer: Answer, proprio: np.ndarray, subtasks: Sequence[Subtask], instruction: str
) -> Finding:
    """proprio: [T, 8] of the episode. subtasks: [T] which clause of the instruction each frame serves."""
    moved = span(proprio, window.first, window.last)
    evidence = Evidence(moved, subtasks[window.first : window.last], instruction)
    judged = find(window.kind).judge(window, answer, evidence)
    verdicts = {part: verdict for part, (verdict, _) in judged.items()}
    reasons = "; ".join(why for verdict, why in judged.values() if verdict == "contradict")
    return Finding(check.worst(verdicts.values()), verdicts, reasons, moved)
