"""Sections about how the student came to be: data, time, phases, training curves, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import Location
from vlaad_ray.report import answers, charts, page
from vlaad_ray.report.charts import PHASE_COLOURS, SERIES_COLOURS, Series
from vlaad_ray.report.records import EVALUATIONS, metrics, summary
from vlaad_ray.summaries import AnnotateSummary, CollectSummary, TrainSummary

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SPLITS = {"train": False, "validation": True}
"""Split of metrics.jsonl -> drawn dashed."""


def counts(run: Location) -> str:
    title = "Counts"
    source = "`data/summary.json`, `annotations/summary.json`, `train/summary.json`"
    collected = store.read_summary(run / "data", CollectSummary)
    annotated = store.read_summary(run / "annotations", AnnotateSummary)
    trained = store.read_summary(run / "train", TrainSummary)
    rows = []
    if collected:
        episodes = ", ".join(f"{number} {name}" for name, number in vars(collected.episodes).items())
        speed = f", {collected.steps_per_second:.1f} steps/s" if collected.steps_per_second else ""
        rows.append(["episodes", f"{episodes}; {collected.frames:,} frames kept{speed}"])
    if annotated:
        labels = f"{annotated.frames:,} frames in {annotated.segments:,} segments"
        rows.append(["annotations", f"{labels}, by {escape(annotated.annotator)}, {annotated.taxonomy} phases"])
    if trained:
        split = ", ".join(f"{number} {name}" for name, number in vars(trained.episodes).items())
        work = f"{trained.epochs} epochs, {trained.steps:,} steps, {trained.samples_per_second:.0f} samples/s"
        rows.append(["training", f"{escape(trained.objective)}: {work}; episodes: {split}"])
    body = page.table(["", ""], rows, css="described") if rows else page.not_run("jobs/collect.py")
    return page.section(title, source, body)


def seconds(run: Location) -> str:
    title, source = "Time by stage", "`summary.json` of the run, written by `jobs/pipeline.py`; resumed runs add up"
    whole = summary(run / "summary.json", "seconds")
    if whole is None:
        return page.section(title, source, page.not_run("jobs/pipeline.py"))
    total = sum(whole["seconds"].values())
    minutes = {name: value / 60 for name, value in whole["seconds"].items()}
    return page.section(title, source, page.bars(minutes, "min") + f"<p>{total / 60:.1f} minutes in all.</p>")


def phases(run: Location) -> str:
    title, source = "Frames by phase", "`annotations/summary.json`, written by `jobs/annotate.py`"
    found = store.read_summary(run / "annotations", AnnotateSummary)
    if found is None:
        return page.section(title, source, page.not_run("jobs/annotate.py"))
    body = page.bars(found.frames_per_phase, "frames", PHASE_COLOURS)
    agreement = found.agreement
    if agreement.rate is not None:
        body += (
            "<h3>Against the phases that the teacher states</h3>"
            f"<p>{100 * agreement.rate:.1f} % of {agreement.frames:,} frames agree. Rows: the teacher's phase; "
            "columns: the annotation, in per cent of the row.</p>"
        ) + _confusion(agreement.confusion)
    return page.section(title, source, body)


def vlm(run: Location) -> str:
    """What the audit says of a VLM's answers; nothing where the rules annotated alone."""
    folder = run / "annotations"
    found = store.read_summary(folder, AnnotateSummary)
    if found is None or found.annotator == "rules":
        return ""
    source = "`annotations/summary.json`, written by `jobs/annotate.py --annotator vlm`. " + answers.SOURCE
    body = answers.figures(answers.read(folder))
    if (folder / "contact_sheet.html").exists():
        body += '<p><a href="annotations/contact_sheet.html">Contact sheet: answers with their pictures</a></p>'
    return page.section("The VLM's answers, audited", source, body)


def _confusion(confusion: Mapping[str, Mapping[str, int]]) -> str:
    names = list(confusion)
    rows = []
    for name in names:
        total = sum(confusion[name].values())
        cells = [escape(name)]
        for other in names:
            share = confusion[name][other] / total if total else 0.0
            shade = f"color-mix(in srgb, var(--student) {60 * share:.0f}%, transparent)"
            shown = "" if not share else f"{100 * share:.0f}" if share >= 0.005 else "&lt;1"
            cells.append(f'<span class="cell" style="background:{shade}">{shown}</span>')
        rows.append([*cells, f"{total:,}"])
    return page.table(["", *map(escape, names), "frames"], rows, css="matrix")


def training(run: Location) -> str:
    title = "Training"
    source = "`train/metrics.jsonl`, written by `jobs/train.py`. Near: within 8 of 256 bins of the teacher's action, "
    source += "over the path without descriptions, which is what gets deployed."
    path = run / "train" / "metrics.jsonl"
    records = metrics(path) if path.exists() else []
    if not records:
        return page.section(title, source, page.not_run("jobs/train.py"))
    epochs = [record["epoch"] for record in records]
    split = "validation" if records[-1]["validation"] else "train"
    of = "held-out episodes" if split == "validation" else "training episodes"

    losses = _losses(records)
    dimensions = [
        Series(name, [_entry(record[split], "near_by_dimension", index) for record in records], SERIES_COLOURS[index])
        for index, name in enumerate(ACTION_NAMES)
    ]
    by_phase = {name: None for record in records for name in record[split].get("near_by_phase", {})}
    order = [name for name in PHASE_COLOURS if name in by_phase] + [
        name for name in by_phase if name not in PHASE_COLOURS
    ]
    phase_lines = [
        Series(
            name,
            [_entry(record[split], "near_by_phase", name) for record in records],
            PHASE_COLOURS.get(name, "#777777"),
        )
        for name in order
    ]
    figures = [
        _figure("Loss; dashed: held-out episodes", epochs, losses, "loss (nats)", percent=False),
        _figure(f"Near accuracy by dimension, {of}", epochs, dimensions, "predictions near", percent=True),
        _figure(f"Near accuracy by phase, {of}", epochs, phase_lines, "predictions near", percent=True),
    ]
    return page.section(title, source, f'<div class="charts">{"".join(figures)}</div>')


def _losses(records: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Total and parts for both splits, without parts that are always zero (a path that the objective leaves out)."""
    names = sorted({name for record in records for name in record["train"] if name.startswith("loss")})
    series = []
    for name, colour in zip(names, SERIES_COLOURS, strict=False):
        label = "total" if name == "loss" else name.removeprefix("loss_").replace("_", " ")
        for split, dashed in SPLITS.items():
            values = [record[split].get(name) for record in records]
            if any(values):
                series.append(Series(label if not dashed else f"{label}, held out", values, colour, dashed))
    return series


def _entry(record: Mapping[str, Any], name: str, key: Any) -> float | None:
    """record[name][key], None where the epoch measured no such thing."""
    values = record.get(name, {})
    if isinstance(values, list):
        return float(values[key])
    return values.get(key)


def _figure(title: str, xs: Sequence[float], series: Sequence[Series], y_label: str, percent: bool) -> str:
    if not any(value is not None for each in series for value in each.values):
        return ""
    entries = {each.label: each.colour for each in series if not each.dashed}
    chart = charts.line_chart(xs, series, "epoch", y_label, percent)
    return f"<figure><h3>{escape(title)}</h3>{chart}{charts.legend(entries)}</figure>"


def provenance(run: Location) -> str:
    title = "Provenance"
    source = "`*/config.json`, written by every stage: the resolved settings, package versions and git revision"
    folders = [run, *(run / name for name in ("data", "annotations", "train", *EVALUATIONS.values()))]
    parts: list[str] = []
    made_by: dict[str, None] = {}  # in order, each once
    for folder in folders:
        path = folder / "config.json"
        if not path.exists():
            continue
        record = summary(path, "stage", "config", "versions", "git_revision") or {}
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        made_by[f"git {record['git_revision'] or 'unknown'}; python {record.get('python', '?')}; {versions}"] = None
        settings = escape(json.dumps(record["config"], indent=2))
        name = "run" if folder == run else folder.name
        parts.append(
            f"<details><summary>{escape(name)}: {escape(record['stage'])}</summary><pre>{settings}</pre></details>"
        )
    said = "".join(f'<p class="soft">{escape(text)}</p>' for text in made_by)
    return page.section(title, source, said + "".join(parts) if parts else page.not_run("jobs/pipeline.py"))
