"""Annotation by a VLM: rules say when and what phase, the VLM says what is seen and which way, the audit checks it.

What was answered once is never asked again: answers lie beside the annotations, under a key of all that determines
them (episode content, window, model revision, prompts, sampling). Annotations and audit are made from the answers, so
another policy for contradictions costs no call.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlaad_ray import store
from vlaad_ray.annotate import asking, chat_server, check, engines, kinds, merge, questions, records, replies
from vlaad_ray.annotate.asking import Spent
from vlaad_ray.annotate.questions import Work
from vlaad_ray.configs import AnnotateConfig, Location
from vlaad_ray.summaries import Faults, Forecast, Tokens, VlmSeconds, VlmSummary

SUITE_FRAMES, PAPER_USD = 81_000, 7.0
"""What annotating a suite took in the paper (VLA-AD, arXiv 2605.16241), through an API."""


def annotate_by_vlm(paths: Sequence[Location], config: AnnotateConfig) -> VlmSummary:
    """Annotate the episodes of `paths`. The summary has a `failure` when not one of all answers was usable.

    Raises UserError when a server does not answer or a model is missing.
    """
    began = time.monotonic()
    vlm = config.vlm
    engine = engines.resolve(vlm)
    if vlm.server:
        chat_server.check(vlm, engine.model)
    revision = engines.model_revision(engine.model, vlm)
    decisions = merge.read_decisions(vlm.decisions)
    works, errors = questions.plan(paths, config, revision)
    planned = time.monotonic()
    spent = asking.ask_all(works, config, engine)
    asked = time.monotonic()

    counted: list[dict[str, Any]] = [{"error": error} for error in errors]
    audited: list[dict[str, Any]] = []
    flagged: Counter[str] = Counter()
    for finished in merge.finish_all(works, config, revision, spent.lost, decisions) if works else []:
        counted.append(finished.record)
        audited += finished.audit
        flagged.update(finished.flagged)
    store.write_audit(config.out, audited)
    if vlm.decisions:
        store.write_accepted(config.out, audited)
    took = VlmSeconds(
        plan=round(planned - began, 2), ask=round(asked - planned, 2), audit=round(time.monotonic() - asked, 2)
    )
    frames_per_second, gpu_seconds, forecast = cost(
        sum(work.frames for work in works), spent, asked - planned, engine, bool(vlm.server)
    )
    summary = VlmSummary(
        **vars(records.summarise(counted, config)),
        model=revision,
        prompts=kinds.prompt_hash(),
        engine={"server": vlm.server} if vlm.server else {**vars(engine), "environment": dict(engine.environment)},
        questions=sum(len(work.questions) for work in works),
        vlm_calls=spent.calls,
        valid=len(audited),
        flagged=dict(flagged.most_common()),
        first_words=first_words(works),
        faults=Faults(
            corrupt_images=sum(work.corrupt for work in works),
            asked_again=spent.asked_again,
            engine_failures=spent.engine_failures,
        ),
        decisions=merge.count_decisions(decisions, audited),
        audit=check.summarise(audited),
        tokens=Tokens(spent.prompt_tokens, spent.generated_tokens),
        seconds_by_stage=took,
        frames_per_second=frames_per_second,
        gpu_seconds=gpu_seconds,
        forecast=forecast,
    )
    asked_for = sum(bool(window.frames) for work in works for window in work.questions.values())
    return replace(summary, failure=failure(summary, asked_for, config.out)) if asked_for and not audited else summary


def failure(summary: VlmSummary, asked_for: int, out: Location) -> str:
    """In words, that none of the answers asked for was usable, and what to do."""
    common = ", ".join(f"{count} x {reason}" for reason, count in list(summary.flagged.items())[:3])
    said = "; ".join(f"{problem}: {words!r}" for problem, words in summary.first_words.items())
    advice = "raise --max-tokens" if "cut off" in summary.flagged else "check the model and what it said"
    return (
        f"not one of {asked_for} answers of {summary.model} was usable ({common}); all frames in {out} keep "
        f"their rule labels; {advice}{f' ({said})' if said else ''}"
    )


def first_words(works: Sequence[Work]) -> dict[str, str]:
    """Problem of answers that are of no use -> how one of them begins."""
    found: dict[str, str] = {}
    for work in works:
        for request in work.questions:
            answer = work.answers.get(request)
            if answer is not None and answer["problem"] is not None:
                found.setdefault(answer["problem"], replies.first_words(answer["text"]))
    return found


def cost(
    frames: int, spent: Spent, seconds: float, engine: engines.Engine, remote: bool
) -> tuple[float | None, float | None, Forecast | None]:
    """(frames a second, GPU-seconds, a whole suite at the same rate); no rates when nothing was asked.

    GPU-seconds count every reserved GPU from the start of the engine on; a server's are not known here.
    """
    if not spent.calls:
        return None, 0.0, None
    gpu_seconds = None if remote else seconds * engine.gpus * engine.replicas * engine.tensor_parallel
    scale = SUITE_FRAMES / frames
    forecast = Forecast(
        frames=SUITE_FRAMES,
        vlm_calls=round(spent.calls * scale),
        hours=round(seconds * scale / 3600, 2),
        gpu_hours=None if gpu_seconds is None else round(gpu_seconds * scale / 3600, 2),
        paper_usd=PAPER_USD,
    )
    return round(frames / seconds, 2), gpu_seconds if gpu_seconds is None else round(gpu_seconds, 1), forecast
