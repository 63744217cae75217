"""The audit of a VLM's answers in numbers, for the report of a run and for the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.report import charts, page
from vlaad_ray.stats import format_success
from vlaad_ray.summaries import Judged, VlmSummary

SOURCE = (
    "Dot: share of the decided answers that agree with the robot's motion or with their phase; bar: 95 % Wilson "
    "interval; grid lines at 0, 25, 50, 75, 100 %. Undecidable: the motion was too small or too oblique to tell."
)


def read(annotations: Location) -> VlmSummary:
    """The summary of a VLM's annotation. UserError if it is missing, corrupt or the rules'."""
    found = store.read_summary(annotations, VlmSummary)
    if found is None:
        raise UserError(f"{annotations} holds no summary.json; make it with jobs/annotate.py --annotator vlm")
    return found


def figures(found: VlmSummary) -> str:
    """Agreement by everything, stability, reasons, cost."""
    audit = found.audit
    rows = [
        _row("<b>all</b>", "", audit),
        *_rows("what was said", audit.parts),
        *_rows("direction said", audit.direction_by_axis),
        *_rows("phase", audit.phases),
        *_rows("suite", audit.suites),
    ]
    header = ["", "", "agreement", "", "contradict", "undecidable"]
    tasks = page.table(header, _rows("task", audit.tasks))
    body = f"{page.table(header, rows)}<details><summary>By task</summary>{tasks}</details>"
    stability = audit.stability
    if stability.neighbours:
        body += (
            f"<p>From one window to the next, the direction said turns just when kinematics does in "
            f"{stability.as_steady_as_kinematics} of {stability.neighbours} pairs.</p>"
        )
    return f"<p>{escape(_counts(found))}</p>{body}{_flagged(found)}<p>{escape(cost(found))}</p>"


def cost(found: VlmSummary) -> str:
    """One sentence: what asking took, and what a suite would take."""
    forecast = found.forecast
    if not found.vlm_calls or forecast is None:
        return "Cost: no VLM call in the last run, all answers were there from earlier ones."
    said = (
        f"Cost: {found.vlm_calls:,} VLM calls, {found.tokens.prompt:,} prompt and {found.tokens.generated:,} generated "
        f"tokens in {found.seconds_by_stage.ask:,.0f} s, {found.frames_per_second:g} frames/s"
    )
    said += "" if found.gpu_seconds is None else f", {found.gpu_seconds:,.0f} GPU-seconds"
    gpu = "" if forecast.gpu_hours is None else f" ({forecast.gpu_hours:g} GPU-hours)"
    return (
        f"{said}. At this rate a suite of {forecast.frames:,} frames takes {forecast.vlm_calls:,} calls and "
        f"{forecast.hours:g} hours{gpu}; the paper paid {forecast.paper_usd:g} USD to an API for one."
    )


def _counts(found: VlmSummary) -> str:
    faults = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in vars(found.faults).items() if number)
    return (
        f"{found.valid:,} usable answers to {found.questions:,} questions, by {found.model}"
        f"{f'; met on the way: {faults}' if faults else ''}."
    )


def _rows(title: str, of: Mapping[str, Judged]) -> list[list[str]]:
    return [_row("" if row else title, escape(name), each) for row, (name, each) in enumerate(of.items())]


def _row(group: str, name: str, of: Judged) -> list[str]:
    shown = ["", "none decided"]
    if (agreement := of.success) is not None:
        shown = [charts.interval(agreement, "student"), format_success(agreement)]
    return [group, name, *shown, str(of.contradict), str(of.undecidable)]


def _flagged(found: VlmSummary) -> str:
    if not found.flagged:
        return "<p>No answer was flagged.</p>"
    return "<h3>Flagged, by reason</h3>" + page.bars(found.flagged, "answers")
