"""The whole way: collect, annotate, train, evaluate teacher and student, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

from vlaad_ray import annotate, collect, evaluate, report, store, train
from vlaad_ray.configs import AnnotateConfig, CollectConfig, EvalConfig, PipelineConfig, TrainConfig
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.stats import format_success


def run_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """Run every stage in order; return (and write) the summary of the run."""
    out = config.out
    begin(out, config)
    write_run_record(out, config)
    seconds_path = out / "seconds.json"
    seconds: dict[str, float] = store.read_json(seconds_path) if seconds_path.exists() else {}

    def timed(name: str, stage: Callable[[Any], dict[str, Any]], stage_config: Any) -> dict[str, Any]:
        cli.console.rule(name)
        start = time.monotonic()
        summary = stage(stage_config)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start  # a resumed run adds to what it took before
        store.write_json(seconds_path, seconds)
        return summary

    collect_config = CollectConfig(
        out=out / "data",
        suite=config.suite,
        tasks=config.tasks,
        init_states=config.init_states,
        placements=config.placements,
        teacher=config.teacher,
        execute=config.teacher_execute,
        seed=config.seed,
        image_every=config.image_every,
        noise=config.noise,
        teacher_config=config.teacher_config,
        serving=config.serving,
        teacher_noise=config.teacher_noise,
        env=config.env,
        fleet=config.fleet,
    )
    timed("collect", collect.collect, collect_config)
    timed(
        "annotate",
        annotate.annotate,
        AnnotateConfig(data=out / "data", out=out / "annotations", phases=config.phases),
    )
    train_config = TrainConfig(
        data=out / "data",
        annotations=out / "annotations",
        out=out / "train",
        student=config.student,
        network=config.network,
        batch_size=config.batch_size,
        objective=config.objective,
        method=config.method,
        epochs=config.epochs,
        max_minutes=config.max_minutes,
        workers=config.workers,
        gpus_per_worker=config.gpus_per_worker,
        wait_for_nodes_s=config.fleet.wait_for_nodes_s,
        seed=config.seed,
    )
    timed("train", train.train, train_config)
    teacher_config = EvalConfig(
        policy=config.teacher,
        out=out / "eval_teacher",
        suite=config.suite,
        tasks=config.tasks,
        init_states=config.eval_init_states,
        seed=config.seed,
        execute=config.teacher_execute,
        videos=1,
        teacher_config=config.teacher_config,
        serving=config.serving,
        teacher_noise=config.teacher_noise,
        env=config.env,
        fleet=config.fleet,
    )
    teacher = timed("evaluate teacher", evaluate.evaluate, teacher_config)
    student_config = EvalConfig(
        policy=str(out / "train" / "checkpoint"),
        out=out / "eval_student",
        suite=config.suite,
        tasks=config.tasks,
        init_states=config.eval_init_states,
        seed=config.seed,
        execute=config.execute,
        compare_to=out / "eval_teacher",
        env=config.env,
        fleet=config.fleet,
    )
    student = timed("evaluate student", evaluate.evaluate, student_config)
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
