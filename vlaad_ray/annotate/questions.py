"""Which questions an annotation needs: planned over all episodes in parallel, with what was answered before."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from vlaad_ray import store
from vlaad_ray.annotate import kinds, rules
from vlaad_ray.annotate.kinds.kind import Scene
from vlaad_ray.annotate.prompts import Answer
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import AnnotateConfig, Location, UserError, VlmConfig, location
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.semantics import phases
from vlaad_ray.types import Episode


@dataclass
class Work:
    """One episode's questions, and how far they are."""

    path: Location
    episode: str
    suite: str
    task: int
    instruction: str
    frames: int
    corrupt: int
    """Number of pictures, of the camera that a VLM is shown, that do not decode."""
    nine: tuple[str, ...]
    """[T] the nine phases, by the rules."""
    questions: dict[str, Window]
    """Request -> what to ask. Windows without any picture are in there, too."""
    answers: dict[str, dict[str, Any]]
    """Request -> row of store.ANSWER_SCHEMA. Those to questions that other settings asked are kept, too."""
    said: dict[str, Answer]
    """Request of these questions -> what a good answer to it says."""

    def open(self, max_retries: int) -> list[str]:
        """Requests that still want an answer."""
        return [
            request
            for request, window in self.questions.items()
            if window.frames and not settled(self.answers.get(request), max_retries)
        ]


def plan(paths: Sequence[Location], config: AnnotateConfig, revision: str) -> tuple[list[Work], list[str]]:
    """The work on every episode, in order, and what was wrong with files that cannot be read."""
    plan_one = functools.partial(plan_episode, config=config, revision=revision)
    records = over_episodes(paths, plan_one, "planning questions")
    works = sorted((read_work(each) for each in records if "error" not in each), key=lambda work: str(work.path))
    return works, [record["error"] for record in records if "error" in record]


def plan_episode(
    path: Location, episode: Episode, facts: Mapping[str, Any], config: AnnotateConfig, revision: str
) -> dict[str, Any]:
    """What to ask of an episode, for `read_work`; or the error that its file is to blame for."""
    try:
        pictures = store.read_pictures(path)
        nine = rules.nine_phases(episode)
    except UserError as error:
        return {"error": str(error)}
    readable = [step for step, data in sorted(pictures.items()) if _decodes(data)]
    labels = phases.relabel(nine, episode.proprio, config.phases)
    planned = kinds.plan(Scene(labels, nine, episode.proprio, readable), config.vlm)
    questions = {
        request_key(facts["content_hash"], window, episode.instruction, revision, config.vlm): window
        for window in planned
    }
    answers = known_answers(config.out, episode.key.name)
    work = Work(
        path=path,
        episode=episode.key.name,
        suite=episode.key.suite,
        task=episode.key.task,
        instruction=episode.instruction,
        frames=len(episode),
        corrupt=len(pictures) - len(readable),
        nine=nine,
        questions=questions,
        answers=answers,
        said={
            request: kinds.parse(answers[request]["text"], None, window.kind, config.vlm.frame)
            for request, window in questions.items()
            if request in answers and answers[request]["problem"] is None
        },
    )
    return work_record(work)


def request_key(content_hash: str, window: Window, instruction: str, revision: str, vlm: VlmConfig) -> str:
    """16 hex digits over all that determines an answer."""
    sampling = {"max_tokens": vlm.max_tokens, "temperature": vlm.temperature, "pixels": vlm.picture_pixels}
    told = kinds.messages(window, instruction, [], vlm.frame), kinds.schema(window.kind, vlm.frame)
    what = [content_hash, vars(window), revision, told, vlm.frame, sampling]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def known_answers(out: Location, episode: str) -> dict[str, dict[str, Any]]:
    """Answers from earlier runs, those to other questions too. A file that cannot be read is made anew."""
    with suppress(UserError):
        return {row["request"]: row for row in store.read_answers(out, episode)}
    return {}


def write_work(work: Work) -> str:
    """JSON, because Arrow turns dicts with different keys into one with all of them."""
    return json.dumps(work_record(work))


def work_record(work: Work) -> dict[str, Any]:
    return {**asdict(work), "path": str(work.path)}


def read_work(record: dict[str, Any]) -> Work:
    """Out of a `work_record`, be it that JSON made it another."""
    questions = {
        request: Window(**{**window, "frames": tuple(window["frames"])})
        for request, window in record["questions"].items()
    }
    said = {request: Answer(**answer) for request, answer in record["said"].items()}
    nine = tuple(record["nine"])
    return Work(**{**record, "path": location(record["path"]), "nine": nine, "questions": questions, "said": said})


def _decodes(data: bytes) -> bool:
    with suppress(OSError, SyntaxError, ValueError):  # what PIL raises for data that is no picture, or half of one
        Image.open(io.BytesIO(data)).load()
        return True
    return False


def settled(answer: Mapping[str, Any] | None, max_retries: int) -> bool:
    """Whether an answer is good, or has been tried for often enough."""
    return answer is not None and (answer["problem"] is None or answer["attempts"] > max_retries)
