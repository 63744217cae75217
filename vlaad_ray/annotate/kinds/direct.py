"""Key frames of a motion -> what moves, and which way."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vlaad_ray.annotate import check, prompts
from vlaad_ray.annotate.check import Verdict
from vlaad_ray.annotate.kinds.kind import Evidence, Question, Scene
from vlaad_ray.annotate.prompts import PHRASE, Answer, Frame
from vlaad_ray.annotate.windows import KEY_FRAMES, Window, goes_somewhere, key_frames, runs, span
from vlaad_ray.configs import VlmConfig


def asked(scene: Scene, vlm: VlmConfig) -> list[Window]:
    """Of every operating segment; with `vlm.moving` of every one in which the hand goes somewhere."""
    return [
        Window("direct", first, last, scene.labels[first], key_frames(scene.pictures, first, last, KEY_FRAMES))
        for first, last in runs(scene.nine)
        if scene.nine[first] == "operating" or (vlm.moving and goes_somewhere(span(scene.proprio, first, last)))
    ]


def fields(frame: Frame) -> dict[str, Any]:
    return {
        "element": {"type": "string", "pattern": f"^{PHRASE}$"},
        "direction": {"type": "string", "enum": list(prompts.direction_words(frame))},
    }


def read(said: Mapping[str, str], frame: Frame) -> Answer:
    return Answer(element=said["element"].strip(), direction=prompts.to_base(said["direction"], frame))


def judge(window: Window, answer: Answer, evidence: Evidence) -> dict[str, tuple[Verdict, str]]:
    assert answer.direction is not None and answer.element is not None
    return {
        "direction": check.judge_direction(answer.direction, evidence.moved),
        "element": check.judge_element(answer.element, evidence.serving, evidence.instruction),
    }


DIRECT = Question(asked, functools.partial(prompts.fill, "direct"), fields, read, judge)
