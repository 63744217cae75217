"""The whole way: collect, annotate, train, evaluate teacher and student, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from rich.table import Table

from vlaad_ray import annotate, collect, evaluate, report, store, train
from vlaad_ray.configs import PipelineConfig
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.stats import format_success
from vlaad_ray.train.workers import refuse_hopeless_workers

Summary = TypeVar("Summary")


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage in order; return (and write) the summary of the run."""
    out = config.out
    begin(out, config)
    places.check(config)
    refuse_hopeless_workers(config.train)
    write_run_record(out, config)
    seconds_path = out / "seconds.json"
    seconds: dict[str, float] = store.read_json(seconds_path) if seconds_path.exists() else {}

    def timed(name: str, stage: Callable[[Any], Summary], stage_config: Any) -> Summary:
        cli.console.rule(name)
        start = time.monotonic()
        summary = stage(stage_config)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start  # a resumed run adds to what it took before
        store.write_json(seconds_path, seconds)
        return summary

    shared = config.collect
    data, annotations, run = out / "data", out / "annotations", out / "train"
    timed("collect", collect.collect, replace(shared, out=data))
    timed("annotate", annotate.annotate, replace(config.annotate, data=data, out=annotations))
    waiting = shared.fleet.wait_for_nodes_s
    taught = replace(
        config.train, data=data, annotations=annotations, out=run, seed=shared.seed, wait_for_nodes_s=waiting
    )
    timed("train", train.train, taught)
    held_out = replace(
        config.evaluate,
        suite=shared.suite,
        tasks=shared.tasks,
        seed=shared.seed,
        env=shared.env,
        fleet=shared.fleet,
        serving=shared.serving,
    )
    as_collected = replace(
        held_out,
        policy=shared.teacher,
        out=out / "eval_teacher",
        execute=shared.execute,
        videos=min(1, held_out.videos),
        teacher_config=shared.teacher_config,
        teacher_noise=shared.teacher_noise,
    )
    teacher = timed("evaluate teacher", evaluate.evaluate, as_collected)
    on_its_own = replace(
        held_out, policy=str(run / "checkpoint"), out=out / "eval_student", compare_to=as_collected.out
    )
    student = timed("evaluate student", evaluate.evaluate, on_its_own)
    summary = {
        "teacher": teacher,
        "student": student,
        "paired": student["paired"],
        "seconds": seconds,
        **software(),
    }
    store.write_json(out / "summary.json", summary)
    cli.console.print(f"Report: {report.write_report(out)}")
    return summary


def show(summary: dict[str, Any]) -> Table:
    table = Table(title="Held-out init states", title_justify="left")
    for column in ("policy", "success ever [95 % Wilson]", "after release"):
        table.add_column(column)
    for policy in ("teacher", "student"):
        success = summary[policy]["success"]
        table.add_row(policy, format_success(success["ever"]), format_success(success["final"]))
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in summary["seconds"].items())
    table.caption = f"minutes: {minutes}"
    return table
