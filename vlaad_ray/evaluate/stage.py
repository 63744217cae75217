"""Stage 5: a policy acts closed loop on held-out init states; success rates with intervals, videos, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from vlaad_ray import files, store
from vlaad_ray.configs import (
    EnvConfig,
    EvalConfig,
    UserError,
    config_hash,
    location,
    named_settings,
    parse_range,
    settings_of,
)
from vlaad_ray.deploy.acting import on_device
from vlaad_ray.envs import check_starts, find_suite
from vlaad_ray.evaluate.metrics import find_metrics
from vlaad_ray.evaluate.outcomes import by_task, compare, flips, read_results, steps_mean, success
from vlaad_ray.evaluate.policies import find_policy
from vlaad_ray.evaluate.videos import choose, file_name, store_video
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.rollout.fleet import Fleet, FleetReport, check_images, fleet_of
from vlaad_ray.rollout.noise import check_teacher_noise
from vlaad_ray.rollout.outcome import store_outcome
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, files_in, software, write_run_record
from vlaad_ray.stats import format_success
from vlaad_ray.summaries import EvalSummary
from vlaad_ray.teachers import TEACHERS
from vlaad_ray.types import EpisodeKey, InitState, LocalPolicy, Outcome, SharedPolicy

CONTENT_VERSION = 2
"""Raise it when the same checkpoint and settings would act otherwise, so that old outcomes are not taken for new."""


def evaluate(config: EvalConfig) -> EvalSummary:
    """Complete the evaluation that `config` describes; return (and write) its summary."""
    student = None if config.policy in TEACHERS else location(config.policy)
    reads = {"--policy": student, **files_in(config.teacher_config), "--compare-to": config.compare_to}
    begin(config.out, config, reads)
    places.check(config)
    config = settled(config)
    suite = find_suite(config.suite)
    baseline = read_results(config.compare_to) if config.compare_to else None
    serving = on_device(config.serving, config.device)
    policy, training = find_policy(config)
    tasks, states = parse_range(config.tasks, "--tasks"), parse_range(config.init_states, "--init-states")
    check_starts(config.suite, suite, tasks, states)
    specs = plan_episodes(config, policy)
    warnings = check_training(specs, training)
    check_teacher_noise(config.teacher_noise, suite.embodiment)
    warnings += check_images(policy, suite.images(config.env))
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    write_run_record(config.out, config)
    make_env = functools.partial(suite.make, config=config.env)
    with fleet_of(make_env, policy, config.fleet, serving) as fleet:
        return evaluated(config, fleet, policy, specs, baseline, warnings)


def evaluated(
    config: EvalConfig,
    fleet: Fleet,
    policy: LocalPolicy | SharedPolicy,
    specs: Sequence[EpisodeSpec],
    baseline: Sequence[Outcome] | None,
    warnings: list[str],
) -> EvalSummary:
    """Run what is missing of the episodes, film some of them; return (and write) the summary."""
    there = store.read_outcomes(config.out, Outcome)
    todo = [spec for spec in specs if spec.key.name not in there]
    finish = functools.partial(store_outcome, config.out, find_metrics(find_suite(config.suite).metrics))
    with cli.progress(f"evaluate {policy.name}", len(specs)) as advance:
        for _ in range(len(specs) - len(todo)):
            advance("already there")
        ended: list[bool] = []

        def on_outcome(_: EpisodeSpec, outcome: Outcome) -> None:
            ended.append(outcome.success_ever)
            advance(f"success {sum(ended)}/{len(ended)}")

        report = fleet.run(todo, finish, on_outcome)
    results, lost = store.account_for(config.out, Outcome, [spec.key.name for spec in specs], report.lost, there)
    if lost:
        raise UserError(
            f"{len(lost)} of {len(specs)} episodes lost their simulator {config.fleet.max_retries + 1} times "
            f"(first: {lost[0]}); no rate is reported; rerun the same command to try again"
        )
    filmed = choose(specs, results, config.videos)
    summary = replace(
        summarise(config, policy, results, report),
        warnings=tuple(warnings),
        paired=compare(results.values(), baseline, str(config.compare_to)) if baseline is not None else None,
        videos=paths_of(config, filmed),
    )
    store.write_summary(config.out, summary)  # before the videos, which are no part of the results
    for name, trouble in film(config, fleet, filmed).items():
        warnings.append(f"no video of {name}: {trouble}")
        cli.console.print(f"[yellow]warning:[/] {escape(warnings[-1])}")
    summary = replace(summary, warnings=tuple(warnings), videos=paths_of(config, filmed))
    store.write_summary(config.out, summary)
    return summary


def summarise(
    config: EvalConfig, policy: LocalPolicy | SharedPolicy, results: Mapping[str, Outcome], report: FleetReport
) -> EvalSummary:
    """What was evaluated and how, what came of it, and what this run took: nothing where all was there already."""
    of_student, suite = config.policy not in TEACHERS, find_suite(config.suite)
    acts: Mapping[str, Any] = policy.settings
    outcomes = list(results.values())
    per_240, per_episode = flips(outcomes)
    return EvalSummary(
        policy=policy.name,
        checkpoint=config.policy if of_student else None,
        suite=config.suite,
        init_states=config.init_states,
        placements=config.placements,
        seed=config.seed,
        execute=acts.get("execute"),
        **(vars(config.actuation) if of_student else {}),
        ensemble=acts.get("ensemble"),
        budget=config.budget or suite.budget,
        render=suite.images(config.env).render,
        success=success(outcomes),
        tasks=by_task(outcomes),
        gripper_flips_per_240=per_240,
        gripper_flips_per_episode=per_episode,
        steps_mean=steps_mean(outcomes),
        retried=report.retried,
        seconds=report.seconds,
        steps_per_second=report.steps / report.seconds if report.steps else 0.0,
        episodes=tuple(results),
        **software(),
    )


def film(config: EvalConfig, fleet: Fleet, specs: Sequence[EpisodeSpec]) -> dict[str, str]:
    """Run the chosen episodes that have no video yet once more, for their pictures. Failures: name -> why."""
    there = {path.name for path in files.children(config.out / "videos", ".mp4")}
    todo = [spec for spec in specs if file_name(spec) not in there]
    if not todo:
        return {}
    finish = functools.partial(store_video, config.out / "videos")
    with cli.progress("videos", len(todo)) as advance:
        report = fleet.run(todo, finish, lambda *_: advance(""))
    failed = {name: trouble for name, trouble in report.outcomes.items() if trouble is not None}
    return failed | dict.fromkeys(report.lost, "its simulator was lost too often")


def paths_of(config: EvalConfig, specs: Sequence[EpisodeSpec]) -> tuple[str, ...]:
    """The videos that there are of these episodes, from `out`."""
    there = {path.name for path in files.children(config.out / "videos", ".mp4")}
    return tuple(f"videos/{name}" for name in map(file_name, specs) if name in there)


def plan_episodes(config: EvalConfig, policy: LocalPolicy | SharedPolicy) -> list[EpisodeSpec]:
    """One episode for each task and start."""
    config = settled(config)
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


def settled(config: EvalConfig) -> EvalConfig:
    """The same with the environment's settings those of the chosen suite, where they were left at another's.

    And with --stock said the other way, so that both ways name the same episodes.
    """
    env = settings_of(f"suite {config.suite}", find_suite(config.suite).config, config.env)
    if not config.stock:
        return replace(config, env=env)
    if not isinstance(env, EnvConfig):
        raise UserError(f"--stock: {config.suite} is none of LIBERO's suites")
    if env.render not in (EnvConfig.render, "stock"):
        raise UserError(f"--stock and --render {env.render}: choose one")
    return replace(config, env=replace(env, render="stock"), stock=False)


def check_training(specs: Sequence[EpisodeSpec], training: Mapping[str, Any]) -> list[str]:
    """What makes a student's evaluation suspect: starts that it was trained on."""
    seen = {
        (spec.key.suite, spec.key.task, spec.key.init.label)
        for spec in specs
        if spec.key.init.kind == "stored"  # what a placement is depends on its seed, which the record does not tell
        and spec.key.init.label in training.get("init_states", {}).get(spec.key.suite, {}).get(str(spec.key.task), ())
    }
    warnings = []
    used = (labels for tasks in training.get("init_states", {}).values() for labels in tasks.values())
    if any(label.startswith("i") for labels in used for label in labels):
        warnings.append("the student was trained on imported episodes: whether they start as these do is not known")
    if not seen:
        return warnings
    return [*warnings, f"{len(seen)} of {len(specs)} episodes start from init states that the student was trained on"]


def show(summary: EvalSummary) -> Table:
    table = Table(title=f"{summary.policy} on {summary.suite}, {summary.budget} steps", title_justify="left")
    for column in ("task", "success ever", "after release", "instruction"):
        table.add_column(column)
    for task, of in summary.tasks.items():
        table.add_row(task, format_success(of.ever), format_success(of.final), of.instruction)
    total = summary.success
    table.add_section()
    table.add_row("all", format_success(total.ever), format_success(total.final), "k/n = rate [95 % Wilson]")
    if summary.paired is not None:
        pair = summary.paired.ever
        table.add_row(
            "paired",
            f"{100 * pair.difference:+.1f} points, p = {pair.mcnemar_p:.3f}",
            "",
            f"against {summary.paired.baseline}",
        )
    return table
