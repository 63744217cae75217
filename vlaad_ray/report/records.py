"""The summaries of a run's stages, checked for what the report shows."""

from __future__ import annotations

from typing import Any

from vlaad_ray import files, store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.summaries import EvalSummary

EVALUATIONS = {"student": "eval_student", "teacher": "eval_teacher"}


def summary(path: Location, *needed: str) -> dict[str, Any] | None:
    """A stage's summary.json, None if the stage has not run. UserError if it is corrupt or lacks a `needed` entry."""
    if not path.exists():
        return None
    value = store.read_json(path)
    missing = [name for name in needed if not isinstance(value, dict) or name not in value]
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}, so it is not of this version; rerun the job that writes it")
    return dict(value)


def evaluations(run: Location) -> dict[str, EvalSummary]:
    """`student` and `teacher` -> summary of the evaluation, those that have run."""
    found = {who: store.read_summary(run / folder, EvalSummary) for who, folder in EVALUATIONS.items()}
    return {who: value for who, value in found.items() if value is not None}


def metrics(path: Location) -> list[dict[str, Any]]:
    """One record an epoch from metrics.jsonl. UserError names the line that is not a record."""
    records = []
    for number, text in enumerate(files.read_bytes(path).decode().splitlines(), start=1):
        record = files.parse_json(text, f"{path}, line {number}", "rerun jobs/train.py")
        if not isinstance(record, dict) or not {"epoch", "train", "validation"} <= record.keys():
            raise UserError(f"{path}, line {number} lacks epoch, train or validation; rerun jobs/train.py")
        records.append(record)
    return records
