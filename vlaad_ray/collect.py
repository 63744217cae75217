"""Stage 1: a teacher acts on many actors; successful episodes are stored."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import (
    CollectConfig,
    Location,
    UserError,
    config_hash,
    named_settings,
    parse_range,
    settings_of,
)
from vlaad_ray.envs import check_starts, find_suite
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.rollout.fleet import FleetReport, check_images, run_policy
from vlaad_ray.rollout.noise import check_teacher_noise
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, files_in, software, write_run_record
from vlaad_ray.teachers import find_teacher
from vlaad_ray.types import (
    Collected,
    CollectSummary,
    Episode,
    EpisodeCounts,
    EpisodeKey,
    InitState,
    LocalPolicy,
    SharedPolicy,
    TaskCounts,
)

CONTENT_VERSION = 2
"""Raise it when the same settings would give other episodes, so that old ones are not taken for them."""


def collect(config: CollectConfig) -> CollectSummary:
    """Complete the dataset that `config` describes; return (and write) its summary."""
    begin(config.out, config, files_in(config.teacher_config))
    places.check(config)
    teacher = find_teacher(config.teacher, config.teacher_config, config.suite, config.execute)
    config = settled(config)
    suite = find_suite(config.suite)
    specs = plan_episodes(config, teacher)
    warnings = check_images(teacher, suite.images(config.env))
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    done = store.read_outcomes(config.out, Collected)
    stored = store.stored_episodes(config.out)
    todo = [spec for spec in specs if not _is_done(spec, done, stored)]
    write_run_record(config.out, config)
    with cli.progress("collect", len(specs)) as advance:
        for _ in range(len(specs) - len(todo)):
            advance("already there")
        report = run_policy(
            todo,
            functools.partial(suite.make, config=config.env),
            teacher,
            functools.partial(store_episode, config.out, config.keep_failed, facts(config)),
            config.fleet,
            config.serving,
            lambda spec, outcome: advance("kept" if outcome.kept else "failed"),
        )
    ended, lost = store.account_for(config.out, Collected, [spec.key.name for spec in specs], report.lost, done)
    summary = summarise(config, teacher.name, len(specs), list(ended.values()), lost, report, warnings)
    store.write_summary(config.out, summary)
    if lost:
        raise UserError(
            f"{len(lost)} of {len(specs)} episodes lost their simulator {config.fleet.max_retries + 1} times "
            f"(first: {lost[0]}); the others are in {config.out}; rerun the same command to try again"
        )
    return summary


def plan_episodes(config: CollectConfig, teacher: LocalPolicy | SharedPolicy) -> list[EpisodeSpec]:
    """Every episode that the config asks for, in a fixed order. Checks all that can be checked before work starts."""
    config = settled(config)
    suite = find_suite(config.suite)
    tasks = parse_range(config.tasks, "--tasks")
    stored = parse_range(config.init_states, "--init-states")
    held_out = suite.held_out
    reserved = sorted(set(stored) & set(held_out))
    if reserved and not config.allow_eval_states:
        raise UserError(
            f"--init-states: {reserved[0]}-{reserved[-1]} are kept for evaluation ({held_out[0]}-{held_out[-1]}); "
            f"choose from 0-{held_out[0] - 1}, add --placements N for more, or pass --allow-eval-states"
        )
    inits = [InitState("stored", index) for index in stored]
    inits += [InitState("placement", index) for index in range(config.placements)]
    if not tasks or not inits:
        raise UserError("nothing to collect: give --tasks and --init-states or --placements")
    check_starts(config.suite, suite, tasks, stored)
    check_teacher_noise(config.teacher_noise, suite.embodiment)
    content = config_hash(
        version=CONTENT_VERSION,
        env=config.env,
        noise=config.noise,
        image_every=config.image_every,
        **teacher.settings,
        **named_settings(config, "teacher_noise"),
    )
    return [
        EpisodeSpec(
            key=EpisodeKey(config.suite, task, init, teacher.name, config.seed, content),
            image_every=config.image_every,
            noise=config.noise,
            teacher_noise=config.teacher_noise,
        )
        for task in tasks
        for init in inits
    ]


def settled(config: CollectConfig) -> CollectConfig:
    """The same with the environment's settings those of the chosen suite, where they were left at another's."""
    return replace(config, env=settings_of(f"suite {config.suite}", find_suite(config.suite).config, config.env))


def facts(config: CollectConfig) -> dict[str, Any]:
    """What every episode's footer says of how it was made, for stages that must not guess it from a hash."""
    return {"render": find_suite(config.suite).images(config.env).render, "teacher_noise": asdict(config.teacher_noise)}


def store_episode(out: Location, keep_failed: bool, extra: dict[str, Any], episode: Episode) -> Collected:
    """On the actor: keep a good episode, then record that it ended. Good means that the goal outlasts the release."""
    kept = episode.success_final
    if kept or keep_failed:
        store.write_episode(out, episode, {**extra, "kept": kept, **software()})
    outcome = Collected(
        suite=episode.key.suite,
        task=episode.key.task,
        init=episode.key.init.label,
        kept=kept,
        stored=kept or keep_failed,
        success_ever=episode.success_ever,
        success_final=episode.success_final,
        steps=len(episode),
    )
    store.write_outcome(out, episode.key.name, outcome)
    return outcome


def _is_done(spec: EpisodeSpec, outcomes: Mapping[str, Collected], stored: Collection[str]) -> bool:
    outcome = outcomes.get(spec.key.name)
    if outcome is None:
        return False
    return not outcome.stored or spec.key.name in stored


def summarise(
    config: CollectConfig,
    policy: str,
    planned: int,
    ended: Sequence[Collected],
    lost: Sequence[str],
    report: FleetReport,
    warnings: Sequence[str],
) -> CollectSummary:
    """`policy`: the teacher's full name. `ended`: outcomes of all planned episodes but the lost ones."""
    kept = Counter(str(outcome.task) for outcome in ended if outcome.kept)
    failed = Counter(str(outcome.task) for outcome in ended if not outcome.kept)
    tasks = dict.fromkeys(str(outcome.task) for outcome in ended)
    return CollectSummary(
        suite=config.suite,
        teacher=config.teacher,
        episodes=EpisodeCounts(planned, kept.total(), failed.total(), report.retried, len(lost)),
        tasks={task: TaskCounts(kept[task], failed[task]) for task in tasks},
        frames=sum(outcome.steps for outcome in ended if outcome.kept),
        new_steps=report.steps,
        seconds=report.seconds,
        steps_per_second=report.steps / report.seconds if report.steps else 0.0,
        lost=tuple(lost),
        policy=policy,
        warnings=tuple(warnings),
        **software(),
    )


def show(summary: CollectSummary) -> Table:
    counts = {**vars(summary.episodes), "frames": summary.frames, "steps per second": summary.steps_per_second}
    return cli.key_value_table(f"Collected {summary.suite} with {summary.teacher}", counts)
