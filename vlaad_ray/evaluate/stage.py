"""Stage 5: a policy acts closed loop on held-out init states; success rates with intervals, videos, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import (
    STEP_BUDGETS,
    EvalConfig,
    ServingConfig,
    UserError,
    config_hash,
    named_settings,
    parse_range,
)
from vlaad_ray.envs import libero
from vlaad_ray.evaluate import metrics
from vlaad_ray.evaluate.outcomes import compare, read_results, summarise
from vlaad_ray.evaluate.policies import find_policy, on_device
from vlaad_ray.evaluate.videos import choose, path_of, store_video
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.rollout.fleet import FleetReport, check_images, run_policy
from vlaad_ray.rollout.noise import check_teacher_noise
from vlaad_ray.rollout.outcome import store_outcome
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.stats import format_success
from vlaad_ray.teachers import TEACHERS
from vlaad_ray.types import EpisodeKey, InitState, LocalPolicy, Outcome, SharedPolicy

CONTENT_VERSION = 2
"""Raise it when the same checkpoint and settings would act otherwise, so that old outcomes are not taken for new."""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Complete the evaluation that `config` describes; return (and write) its summary."""
    student = None if config.policy in TEACHERS else Path(config.policy)
    reads = {"--policy": student, "--checkpoint": config.teacher_config.checkpoint, "--compare-to": config.compare_to}
    begin(config.out, config, reads)
    baseline = read_results(config.compare_to) if config.compare_to else None
    serving = on_device(config.serving, config.device)
    policy, training = find_policy(config)
    libero.check_starts(
        config.suite, parse_range(config.tasks, "--tasks"), parse_range(config.init_states, "--init-states")
    )
    specs = plan_episodes(config, policy)
    warnings = check_training(specs, training)
    check_teacher_noise(config.teacher_noise)
    warnings += check_images(policy, config.env)
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    write_run_record(config.out, config)
    there = store.read_outcomes(config.out, Outcome)
    todo = [spec for spec in specs if spec.key.name not in there]
    finish = functools.partial(store_outcome, config.out, metrics.find_metrics(metrics.LIBERO))
    with cli.progress(f"evaluate {policy.name}", len(specs)) as advance:
        for _ in range(len(specs) - len(todo)):
            advance("already there")
        ended: list[bool] = []

        def on_outcome(_: EpisodeSpec, outcome: Outcome) -> None:
            ended.append(outcome.success_ever)
            advance(f"success {sum(ended)}/{len(ended)}")

        report = run_policy(todo, config.env, policy, finish, config.fleet, serving, on_outcome)
    if report.lost:
        raise UserError(
            f"{len(report.lost)} of {len(specs)} episodes lost their simulator {config.fleet.max_retries + 1} times "
            f"(first: {report.lost[0]}); no rate is reported; rerun the same command to try again"
        )
    outcomes = store.read_outcomes(config.out, Outcome)
    results = {spec.key.name: outcomes[spec.key.name] for spec in specs}
    summary = {**facts(config, policy), **summarise(list(results.values())), **cost(report), "warnings": warnings}
    if baseline is not None:
        summary["paired"] = {**compare(results.values(), baseline), "baseline": str(config.compare_to)}
    summary |= {**software(), "episodes": list(results)}
    filmed = choose(specs, results, config.videos)
    summary["videos"] = film(config, filmed, policy, serving)
    store.write_json(config.out / "summary.json", summary)
    return summary


def facts(config: EvalConfig, policy: LocalPolicy | SharedPolicy) -> dict[str, Any]:
    """What was evaluated, and how."""
    of_student = config.policy not in TEACHERS
    actuation = asdict(config.actuation)
    return {
        "policy": policy.name,
        "checkpoint": config.policy if of_student else None,
        "suite": config.suite,
        "init_states": config.init_states,
        "placements": config.placements,
        "seed": config.seed,
        "execute": policy.settings.get("execute"),
        **(actuation if of_student else dict.fromkeys(actuation)),
        "ensemble": policy.settings.get("ensemble"),
        "budget": config.budget or STEP_BUDGETS[config.suite],
        "render": config.env.render,
    }


def cost(report: FleetReport) -> dict[str, Any]:
    """What this run took: nothing where all was there already."""
    return {
        "retried": report.retried,
        "seconds": report.seconds,
        "steps_per_second": report.steps / report.seconds if report.steps else 0.0,
    }


def film(
    config: EvalConfig, specs: Sequence[EpisodeSpec], policy: LocalPolicy | SharedPolicy, serving: ServingConfig
) -> list[str]:
    """Run the chosen episodes that have no video yet once more, for their pictures; paths of all MP4s, from `out`."""
    paths = {spec.key.name: path_of(config.out / "videos", spec) for spec in specs}
    todo = [spec for spec in specs if not paths[spec.key.name].exists()]
    if todo:
        finish = functools.partial(store_video, config.out / "videos")
        with cli.progress("videos", len(todo)) as advance:
            run_policy(todo, config.env, policy, finish, config.fleet, serving, lambda *_: advance(""))
    return [str(path.relative_to(config.out)) for path in paths.values()]


def plan_episodes(config: EvalConfig, policy: LocalPolicy | SharedPolicy) -> list[EpisodeSpec]:
    """One episode for each task and start."""
    tasks, states = parse_range(config.tasks, "--tasks"), parse_range(config.init_states, "--init-states")
    starts = [InitState("stored", state) for state in states]
    starts += [InitState("placement", number) for number in range(config.placements)]
    if not tasks or not starts:
        raise UserError("nothing to evaluate: give --tasks and --init-states or --placements")
    settings = {"execute": None, **policy.settings, **named_settings(config, "env", "budget", "teacher_noise")}
    content = config_hash(version=CONTENT_VERSION, **settings)
    return [
        EpisodeSpec(
            key=EpisodeKey(config.suite, task, start, policy.name, config.seed, content),
            budget=config.budget or None,
            teacher_noise=config.teacher_noise,
        )
        for task in tasks
        for start in starts
    ]


def check_training(specs: Sequence[EpisodeSpec], training: Mapping[str, Any]) -> list[str]:
    """What makes a student's evaluation suspect: starts that it was trained on."""
    seen = {
        (spec.key.suite, spec.key.task, spec.key.init.label)
        for spec in specs
        if spec.key.init.kind == "stored"  # what a placement is depends on its seed, which the record does not tell
        and spec.key.init.label in training.get("init_states", {}).get(spec.key.suite, {}).get(str(spec.key.task), ())
    }
    if not seen:
        return []
    return [f"{len(seen)} of {len(specs)} episodes start from init states that the student was trained on"]


def show(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['policy']} on {summary['suite']}, {summary['budget']} steps", title_justify="left")
    for column in ("task", "success ever", "after release", "instruction"):
        table.add_column(column)
    for task, entry in summary["tasks"].items():
        table.add_row(task, format_success(entry["ever"]), format_success(entry["final"]), entry["instruction"])
    total = summary["success"]
    table.add_section()
    table.add_row("all", format_success(total["ever"]), format_success(total["final"]), "k/n = rate [95 % Wilson]")
    if "paired" in summary:
        pair = summary["paired"]["ever"]
        table.add_row(
            "paired",
            f"{100 * pair['difference']:+.1f} points, p = {pair['mcnemar_p']:.3f}",
            "",
            f"against {summary['paired']['baseline']}",
        )
    return table
