"""One picture -> a short description of what is going on, within the phase that the rules say it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vlaad_ray.annotate import check, prompts
from vlaad_ray.annotate.check import Verdict
from vlaad_ray.annotate.kinds.kind import Evidence, Question, Scene
from vlaad_ray.annotate.prompts import PHRASE, Answer, Frame
from vlaad_ray.annotate.windows import Window, key_frames, runs
from vlaad_ray.configs import VlmConfig


def asked(scene: Scene, vlm: VlmConfig) -> list[Window]:
    """Once a segment, or every `vlm.every` frames of it."""
    windows = []
    for first, last in runs(scene.labels):
        length = vlm.every or last - first
        for start in range(first, last, length):
            stop = min(start + length, last)
            shown = key_frames(scene.pictures, start, stop, 1)
            windows.append(Window("describe", start, stop, scene.labels[start], shown))
    return windows


def fields(frame: Frame) -> dict[str, Any]:
    """Every verb is allowed, not only the phase's own: else a wrong phase would never be told."""
    return {"description": {"type": "string", "pattern": f"^({'|'.join(prompts.vocabulary())}) {PHRASE}$"}}


def read(said: Mapping[str, str], frame: Frame) -> Answer:
    return Answer(description=said["description"].strip())


def judge(window: Window, answer: Answer, evidence: Evidence) -> dict[str, tuple[Verdict, str]]:
    assert answer.description is not None
    return {"phase": check.judge_description(answer.description, window.phase)}


DESCRIBE = Question(asked, functools.partial(prompts.fill, "describe"), fields, read, judge)
