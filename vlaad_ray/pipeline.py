"""The whole way: collect, annotate, train, evaluate teacher and student, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from rich.table import Table

from vlaad_ray import annotate, collect, evaluate, report, store, train
from vlaad_ray.configs import DaggerConfig, PipelineConfig, TrainConfig
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.stats import format_success
from vlaad_ray.train.workers import refuse_hopeless_workers

LOOK_SEED = 1_000_000
"""Added to the seed for the placements that a student is looked at on between rounds."""
Summary = TypeVar("Summary")


class Timed(Protocol):
    """(name, stage, its config) -> the stage's summary; what it took is written down."""

    def __call__(self, name: str, stage: Callable[[Any], Summary], stage_config: Any, /) -> Summary: ...


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
    rounds = []
    for number in range(1, config.rounds + 1):
        taught, record = run_round(config, number, taught, timed)
        rounds.append(record)
    run = taught.out
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
        "paired": student.paired,
        "seconds": seconds,
        **({"rounds": rounds} if rounds else {}),
        **software(),
    }
    store.write_json(out / "summary.json", summary)
    cli.console.print(f"Report: {report.write_report(out)}")
    return summary


def run_round(
    config: PipelineConfig, number: int, before: TrainConfig, timed: Timed
) -> tuple[TrainConfig, dict[str, Any]]:
    """A round of DAgger: look at the student of training `before`, collect where it fails, train on.

    Returns the round's own training, and what it found and added. The student is looked at on placements of another
    seed than any that are collected from.
    """
    shared, place, student = config.collect, config.out / f"round{number}", before.out / "checkpoint"
    looked_at = replace(
        config.evaluate,
        policy=str(student),
        out=place / "eval",
        suite=shared.suite,
        tasks=shared.tasks,
        init_states="",
        placements=config.round_placements,
        seed=shared.seed + LOOK_SEED,
        videos=0,
        env=shared.env,
        fleet=shared.fleet,
        serving=shared.serving,
    )
    seen = timed(f"round {number}: evaluate", evaluate.evaluate, looked_at)
    taken_over = replace(
        shared,
        out=place / "data",
        init_states="",
        placements=0,
        keep=config.round_keep,
        need=looked_at.out,
        seed=shared.seed + number,
        dagger=DaggerConfig(student),
    )
    collected = timed(f"round {number}: collect", collect.collect, taken_over)
    annotated = replace(config.annotate, data=taken_over.out, out=place / "annotations")
    timed(f"round {number}: annotate", annotate.annotate, annotated)
    taught = replace(
        before,
        out=place / "train",
        more_data=(*before.more_data, taken_over.out),
        more_annotations=(*before.more_annotations, annotated.out),
        start_from=student,
        epochs=config.round_epochs,
        seed=shared.seed + number,
    )
    timed(f"round {number}: train", train.train, taught)
    record = {
        "success_before": seen.success,
        "kept": {task: counts.kept for task, counts in collected.tasks.items()},
        "taught_frames": collected.taught_frames,
        "without_teacher": collected.without_teacher,
    }
    return taught, record


def show(summary: dict[str, Any]) -> Table:
    table = Table(title="Held-out init states", title_justify="left")
    for column in ("policy", "success ever [95 % Wilson]", "after release"):
        table.add_column(column)
    for policy in ("teacher", "student"):
        success = summary[policy].success
        table.add_row(policy, format_success(success.ever), format_success(success.final))
    for number, found in enumerate(summary.get("rounds", ()), start=1):
        added = f"then {sum(found['kept'].values())} episodes, {found['taught_frames']} frames of the teacher"
        table.add_row(f"before round {number}, placements", format_success(found["success_before"].ever), added)
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in summary["seconds"].items())
    table.caption = f"minutes: {minutes}"
    return table
