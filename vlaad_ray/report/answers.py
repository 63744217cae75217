"""The audit of a VLM's answers in numbers, for the report of a run and for the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from vlaad_ray.configs import Location, UserError
from vlaad_ray.report import charts, page
from vlaad_ray.report.records import summary
from vlaad_ray.stats import format_success
from vlaad_ray.summaries import Success

SOURCE = (
    "Dot: share of the decided answers that agree with the robot's motion or with their phase; bar: 95 % Wilson "
    "interval; grid lines at 0, 25, 50, 75, 100 %. Undecidable: the motion was too small or too oblique to tell."
)
GROUPS = {
    "parts": "what was said",
    "direction_by_axis": "direction said",
    "phases": "phase",
    "suites": "suite",
}
NEEDED = ("audit", "model", "questions", "valid", "vlm_calls", "flagged", "faults", "tokens", "seconds_by_stage")


def read(annotations: Location) -> dict[str, Any]:
    """The summary of a VLM's annotation. UserError if it is missing, corrupt or the rules'."""
    found = summary(annotations / "summary.json", *NEEDED)
    if found is None:
        raise UserError(f"{annotations} holds no summary.json; make it with jobs/annotate.py --annotator vlm")
    return found


def figures(found: Mapping[str, Any]) -> str:
    """Agreement by everything, stability, reasons, cost. found: what `read` returns."""
    audit = found["audit"]
    rows = [_row("<b>all</b>", "", audit)]
    for group, title in GROUPS.items():
        rows += _rows(title, audit[group])
    header = ["", "", "agreement", "", "contradict", "undecidable"]
    tasks = page.table(header, _rows("task", audit["tasks"]))
    body = f"{page.table(header, rows)}<details><summary>By task</summary>{tasks}</details>"
    stability = audit["stability"]
    if stability["neighbours"]:
        body += (
            f"<p>From one window to the next, the direction said turns just when kinematics does in "
            f"{stability['as_steady_as_kinematics']} of {stability['neighbours']} pairs.</p>"
        )
    return f"<p>{escape(_counts(found))}</p>{body}{_flagged(found)}<p>{escape(cost(found))}</p>"


def cost(found: Mapping[str, Any]) -> str:
    """One sentence: what asking took, and what a suite would take."""
    calls, tokens, seconds = found["vlm_calls"], found["tokens"], found["seconds_by_stage"]["ask"]
    if not calls:
        return "Cost: no VLM call in the last run, all answers were there from earlier ones."
    said = (
        f"Cost: {calls:,} VLM calls, {tokens['prompt']:,} prompt and {tokens['generated']:,} generated tokens in "
        f"{seconds:,.0f} s, {found['frames_per_second']:g} frames/s"
    )
    said += "" if found["gpu_seconds"] is None else f", {found['gpu_seconds']:,.0f} GPU-seconds"
    forecast = found["forecast"]
    gpu = "" if forecast["gpu_hours"] is None else f" ({forecast['gpu_hours']:g} GPU-hours)"
    return (
        f"{said}. At this rate a suite of {forecast['frames']:,} frames takes {forecast['vlm_calls']:,} calls and "
        f"{forecast['hours']:g} hours{gpu}; the paper paid {forecast['paper_usd']:g} USD to an API for one."
    )


def _counts(found: Mapping[str, Any]) -> str:
    faults = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in found["faults"].items() if number)
    return (
        f"{found['valid']:,} usable answers to {found['questions']:,} questions, by {found['model']}"
        f"{f'; met on the way: {faults}' if faults else ''}."
    )


def _rows(title: str, counts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [_row("" if row else title, escape(name), each) for row, (name, each) in enumerate(counts.items())]


def _row(group: str, name: str, counts: Mapping[str, Any]) -> list[str]:
    decided = counts["agree"] + counts["contradict"]
    shown = ["", "none decided"]
    if decided:
        rate = Success(decided, counts["agree"], counts["agreement"], counts["wilson95"])
        shown = [charts.interval(rate, "student"), format_success(rate)]
    return [group, name, *shown, str(counts["contradict"]), str(counts["undecidable"])]


def _flagged(found: Mapping[str, Any]) -> str:
    if not found["flagged"]:
        return "<p>No answer was flagged.</p>"
    return "<h3>Flagged, by reason</h3>" + page.bars(found["flagged"], "answers")
