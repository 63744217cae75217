"""Asking: passes over all open questions, until each is answered or has had its tries."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.data
from ray.exceptions import RayError

from vlaad_ray import store
from vlaad_ray.annotate import chat_server, engines, kinds, replies
from vlaad_ray.annotate.prompts import MalformedAnswer
from vlaad_ray.annotate.questions import Work, settled
from vlaad_ray.configs import AnnotateConfig, UserError, VlmConfig
from vlaad_ray.runtime import cli


@dataclass
class Spent:
    """What asking took, over all tries."""

    calls: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    engine_failures: int = 0
    """Times that an engine or server broke down in a way that ended a pass."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Problem -> how many answers had it."""
    lost: dict[str, str] = field(default_factory=dict)
    """Request -> why it has no answer, good or bad: it will be asked again by the next run."""


def ask_all(works: Sequence[Work], config: AnnotateConfig, engine: engines.Engine) -> Spent:
    """Ask what is open, and again what came back malformed, at most max_retries times; answers are stored as they come.

    A pass that breaks down (an engine that cannot be started again, a server that is gone) counts as a try of all that
    it left open.
    """
    spent = Spent()
    owner = {request: work for work in works for request in work.questions}
    retries = config.vlm.max_retries
    total = sum(len(work.open(retries)) for work in works)
    with cli.progress("asking the VLM", total) as advance:
        for attempt in range(retries + 1):
            left = [(work, request) for work in works for request in work.open(retries)]
            if not left:
                break
            spent.asked_again += len(left) if attempt else 0
            rows = [
                engines.request_row(request, work.path, work.questions[request], work.instruction)
                for work, request in left
            ]
            waiting = Counter(work.episode for work, _ in left)
            asked = {request for _, request in left}
            spent.lost = {request: "never answered" for request in asked}
            try:
                for row in ask(rows, config.vlm, engine, attempt):
                    work = owner[row["request"]]
                    _take(row, work, config.vlm, attempt, spent)
                    spent.lost.pop(row["request"])
                    waiting[work.episode] -= 1
                    if not waiting[work.episode]:
                        store.write_answers(config.out, work.episode, list(work.answers.values()))
                    if settled(work.answers[row["request"]], retries):
                        advance("")
            except RayError as error:
                if not config.vlm.server:
                    _check_cause(error, engine)
                spent.engine_failures += 1
                reason = "engine broke down" if not config.vlm.server else "server broke down"
                spent.lost = dict.fromkeys(spent.lost, reason)
                cli.console.print(f"{reason} (try {attempt + 1} of {retries + 1}): {_last_line(error)}", markup=False)
                for work in works:
                    if waiting[work.episode]:
                        store.write_answers(config.out, work.episode, list(work.answers.values()))
    return spent


def ask(
    rows: Sequence[dict[str, Any]], config: VlmConfig, engine: engines.Engine, attempt: int
) -> Iterator[dict[str, Any]]:
    """Every question's engines.answer_row, in any order, as they come. attempt: 0, or the number of the retry."""
    temperature = config.temperature + 0.4 * attempt
    max_tokens = config.max_tokens * (1 + attempt)  # an answer that was cut off gets more room
    blocks = max(1, min(len(rows), -(-len(rows) // engine.batch_size)))
    questions = ray.data.from_items(list(rows), override_num_blocks=blocks)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    source = chat_server if config.server else engines
    return iter(source.processor(config, engine, temperature, max_tokens)(questions).iter_rows())


def _take(row: Mapping[str, Any], work: Work, vlm: VlmConfig, attempt: int, spent: Spent) -> None:
    window = work.questions[row["request"]]
    before = work.answers.get(row["request"])
    text, problem = row["text"], row["problem"] or None
    if problem is None:
        cut_off = row["finish"] == "length" or (
            not row["finish"] and row["generated_tokens"] >= vlm.max_tokens * (1 + attempt)
        )
        found = replies.json_object(text)
        try:
            if found is None:
                raise MalformedAnswer("cut off" if cut_off else "not JSON")
            work.said[row["request"]] = kinds.parse(found, "length" if cut_off else None, window.kind, vlm.frame)
            text = found
        except MalformedAnswer as error:
            problem = str(error)
    if problem is not None:
        spent.unusable[problem] += 1
        if spent.unusable[problem] == 1:
            cli.console.print(f"not usable ({problem}): {replies.first_words(row['text'])}", markup=False)
    spent.calls += 1
    spent.prompt_tokens += row["prompt_tokens"]
    spent.generated_tokens += row["generated_tokens"]
    work.answers[row["request"]] = {
        **vars(window),
        "frames": list(window.frames),
        "request": row["request"],
        "text": text,
        "problem": problem,
        "attempts": 1 + (before["attempts"] if before else 0),
        "prompt_tokens": row["prompt_tokens"],
        "generated_tokens": row["generated_tokens"],
    }


def _check_cause(error: Exception, engine: engines.Engine) -> None:
    """A model that is not there, or not one that vLLM can load, fails every try alike: tell it at once."""
    text = str(error)
    for sign in ("is not a local folder and is not a valid model identifier", "LocalEntryNotFoundError", "OSError: "):
        if sign in text:
            raise UserError(f"--model: {engine.model} cannot be loaded: {_last_line(error)}") from None
    if "No module named 'vllm'" in text:
        raise UserError("vLLM is not installed; install vlaad-ray[annotate], or [annotate-cpu] without a GPU") from None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
