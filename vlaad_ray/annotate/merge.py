"""From answers to an annotation: what a VLM said is taken where nothing speaks against it, else the policy decides."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray.data

from vlaad_ray import store
from vlaad_ray.annotate import kinds, prompts, records, rules
from vlaad_ray.annotate.check import Finding
from vlaad_ray.annotate.identity import existing, origin
from vlaad_ray.annotate.prompts import Answer, Frame
from vlaad_ray.annotate.questions import Work, read_work, write_work
from vlaad_ray.annotate.windows import Window
from vlaad_ray.configs import AnnotateConfig, Location, UserError
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.over_episodes import rows_of
from vlaad_ray.semantics import directions
from vlaad_ray.semantics.directions import Subtask
from vlaad_ray.summaries import Decisions
from vlaad_ray.types import Annotation

NO_PICTURE = "no readable picture"
CONTRADICTED = "contradicted by the robot's motion"
REJECTED = "rejected by a person"
EPISODES_A_TASK = 64
"""Merged by one of Ray's tasks: half a second of work, of which a task's own cost is a small part."""
CONTENT = ("every", "moving", "frame", "picture_pixels", "max_tokens", "temperature", "on_contradiction")
"""Settings of the VLM that change labels; the others say where and how fast they are made."""


@dataclass(frozen=True)
class Finished:
    """One episode's annotation is written; this is left to report."""

    record: dict[str, Any]
    audit: list[dict[str, Any]]
    """Rows of store.AUDIT_SCHEMA."""
    flagged: dict[str, int]
    """Windows by what was wrong with their answer."""


@dataclass
class Draft:
    """The words of an episode's T frames while answers are merged into the rules' annotation."""

    directions: list[str]
    clauses: list[str]
    """What a VLM says is going on; empty: the rules' words."""
    dropped: list[bool]
    flags: list[list[str]]
    sources: list[str]

    def take(self, window: Window, answer: Answer, source: str) -> None:
        for t in range(window.first, window.last):
            self.sources[t] = source
            if answer.direction is not None:
                self.directions[t] = answer.direction
            if answer.description is not None:
                self.clauses[t] = answer.description

    def flag(self, window: Window, reason: str, drop: bool = False) -> None:
        for t in range(window.first, window.last):
            self.flags[t].append(reason)
            self.dropped[t] |= drop


def finish_all(
    works: Sequence[Work],
    config: AnnotateConfig,
    revision: str,
    lost: Mapping[str, str],
    decisions: Mapping[str, str],
) -> list[Finished]:
    """`finish` for each, side by side, in their order."""
    finish_one = functools.partial(finish_row, config=config, revision=revision, lost=lost, decisions=decisions)
    items = [{"number": number, "work": write_work(work)} for number, work in enumerate(works)]
    rows = ray.data.from_items(items, override_num_blocks=-(-len(works) // EPISODES_A_TASK))
    finished: dict[int, Finished] = {}
    with cli.progress("auditing", len(works)) as advance:
        for row in rows_of(rows.map(finish_one)):
            finished[row["number"]] = Finished(**json.loads(row["finished"]))
            advance("")
    return [finished[number] for number in range(len(works))]


def finish_row(row: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """`finish`, of works and what is left of them as JSON."""
    finished = finish(read_work(json.loads(row["work"])), **settings)
    return {"number": row["number"], "finished": json.dumps(vars(finished))}


def finish(
    work: Work, config: AnnotateConfig, revision: str, lost: Mapping[str, str], decisions: Mapping[str, str]
) -> Finished:
    """Audit one episode's answers and write its annotation.

    lost: requests that never got an answer, and why. decisions: request -> "accepted" or "rejected", by a person.
    """
    episode = store.read_episode(work.path, images=False)
    ruled = rules.by_rules(episode, work.nine, config.phases)
    subtasks = directions.subtasks_by_frame(work.nine, episode.instruction)
    steps, policy = range(len(episode)), config.vlm.on_contradiction
    draft = Draft(
        directions=list(ruled.directions),
        clauses=["" for _ in steps],
        dropped=[False for _ in steps],
        flags=[[] for _ in steps],
        sources=list(ruled.sources),
    )
    audited: list[dict[str, Any]] = []
    flagged: Counter[str] = Counter()
    for request, window in work.questions.items():
        stored = work.answers.get(request)
        if stored is None or stored["problem"] is not None:
            why = stored["problem"] if stored else lost[request] if window.frames else NO_PICTURE
            draft.flag(window, why)
            flagged[why] += 1
            continue
        answer = work.said[request]
        finding = kinds.judge(window, answer, episode.proprio, subtasks, episode.instruction)
        decision = decisions.get(request)
        objection = _objection(finding, decision)
        if not objection or policy == "keep":
            draft.take(window, answer, revision)
        if objection:
            draft.flag(window, objection, drop=policy == "drop")
            flagged[objection] += 1
        told = _told(window, work.instruction, config.vlm.frame)
        audited.append(_audit_row(request, work, window, told, answer, finding, decision))
    annotation = _annotation(ruled, draft, subtasks)
    made_by = {
        **origin(config),
        "model": revision,
        "prompts": kinds.prompt_hash(),
        "vlm": {name: getattr(config.vlm, name) for name in CONTENT},
        "content_hash": store.read_metadata(work.path)["content_hash"],
    }
    before = existing(config.out, annotation.episode, made_by)
    skipped = before is not None and before.descriptions == annotation.descriptions and before.flags == annotation.flags
    if not skipped:
        store.write_annotation(config.out, annotation, made_by)
    record = {"skipped": skipped, **records.count(episode, annotation, config.phases)}
    return Finished(record, audited, flagged)


def read_decisions(path: Location | None) -> dict[str, str]:
    """What a person decided on the contact sheet: request -> "accepted" or "rejected"."""
    if path is None:
        return {}
    found = store.read_json(path)
    if not isinstance(found, dict) or not set(found.values()) <= {"accepted", "rejected"}:
        raise UserError(f"--decisions: {path} is no export of a contact sheet ({{request: accepted | rejected}})")
    return found


def count_decisions(decisions: Mapping[str, str], audited: Sequence[Mapping[str, Any]]) -> Decisions:
    """How many took effect; unknown requests are those of before a change of model or prompts."""
    taken = Counter(row["decision"] for row in audited if row["decision"])
    return Decisions(taken["accepted"], taken["rejected"], unknown=len(decisions) - taken.total())


def _objection(finding: Finding, decision: str | None) -> str:
    if decision is not None:
        return REJECTED if decision == "rejected" else ""
    return CONTRADICTED if finding.verdict == "contradict" else ""


def _annotation(ruled: Annotation, draft: Draft, subtasks: Sequence[Subtask]) -> Annotation:
    """The phase anchors every sentence, whoever wrote the rest."""
    descriptions = []
    for phase, direction, clause, dropped, subtask in zip(
        ruled.phases, draft.directions, draft.clauses, draft.dropped, subtasks, strict=True
    ):
        said = f"{phase}: {clause}, {direction}" if clause else directions.describe(phase, direction, subtask)
        descriptions.append("" if dropped else said)
    return replace(
        ruled,
        directions=tuple(draft.directions),
        descriptions=tuple(descriptions),
        sources=tuple(draft.sources),
        flags=tuple("; ".join(dict.fromkeys(flags)) for flags in draft.flags),
    )


def _told(window: Window, instruction: str, frame: Frame) -> str:
    """The prompt as text for a person; a line stands where each picture went."""
    pictures = [f"[picture of step {step}]" for step in window.frames]
    parts = [part for message in kinds.messages(window, instruction, pictures, frame) for part in message["content"]]
    return "\n\n".join(part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in parts)


def _audit_row(
    request: str, work: Work, window: Window, told: str, answer: Answer, finding: Finding, decision: str | None
) -> dict[str, Any]:
    truth = directions.words(finding.moved)
    return {
        **vars(window),
        "frames": list(window.frames),
        "request": request,
        "episode": work.episode,
        "suite": work.suite,
        "task": work.task,
        "instruction": work.instruction,
        "prompt": told,
        **vars(answer),
        "truth": truth,
        "direction_seen": None if answer.direction is None else prompts.from_base(answer.direction, "viewer"),
        "truth_seen": prompts.from_base(truth, "viewer"),
        "moved": [*finding.moved.xyz, finding.moved.yaw, finding.moved.width],
        "verdict": finding.verdict,
        "parts": finding.parts,
        "reason": finding.reason,
        "decision": decision,
    }
