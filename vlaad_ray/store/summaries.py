"""summary.json: what a stage says of its work, as one of the records in summaries."""

from __future__ import annotations

from typing import TypeVar

from vlaad_ray.configs import Location, read_record
from vlaad_ray.files import read_json, write_json
from vlaad_ray.summaries import (
    AnnotateSummary,
    AuditSummary,
    CollectSummary,
    EvalSummary,
    ProbeSummary,
    TrainSummary,
)

Summary = TypeVar(
    "Summary",
    bound=AnnotateSummary | AuditSummary | CollectSummary | EvalSummary | ProbeSummary | TrainSummary,
)
SUMMARY = "summary.json"


def write_summary(out: Location, summary: Summary) -> Location:
    """Written last: where it is, the stage has come to its end."""
    return write_json(out / SUMMARY, summary)


def read_summary(out: Location, kind: type[Summary]) -> Summary | None:
    """What the stage said that wrote into `out`; None: it has not come to its end. Raises UserError for another's."""
    path = out / SUMMARY
    if not path.exists():
        return None
    return read_record(kind, read_json(path), str(path), "delete it and rerun the job that writes it")
