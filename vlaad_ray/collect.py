"""Stage 1: a teacher acts on many actors; successful episodes are stored."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import (
    CollectConfig,
    Location,
    ServingConfig,
    UserError,
    config_hash,
    named_settings,
    parse_range,
    settings_of,
    what_a_checkpoint_is,
)
from vlaad_ray.deploy.acting import Acting, check_device, on_device, student_policy
from vlaad_ray.envs import check_starts, find_suite
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.rollout.fleet import FleetReport, Pupil, check_images, fleet_of
from vlaad_ray.rollout.noise import check_teacher_noise
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, files_in, software, write_run_record
from vlaad_ray.summaries import CollectSummary, EpisodeCounts, TaskCounts
from vlaad_ray.teachers import find_teacher
from vlaad_ray.types import Collected, Episode, EpisodeKey, InitState, LocalPolicy, SharedPolicy

CONTENT_VERSION = 2
"""Raise it when the same settings would give other episodes, so that old ones are not taken for them."""

MIN_NEED = 0.1
"""Of what a task that always fails needs, what one needs that never does."""


def collect(config: CollectConfig) -> CollectSummary:
    """Complete the dataset that `config` describes; return (and write) its summary."""
    reads = {"--student": config.dagger.student, "--need": config.need}
    begin(config.out, config, {**files_in(config.teacher_config), **reads})
    places.check(config)
    teacher = find_teacher(config.teacher, config.teacher_config, config.suite, config.execute)
    config = settled(config)
    suite = find_suite(config.suite)
    pupil = find_pupil(config, teacher)
    specs = plan_episodes(config, teacher, pupil)
    warnings = check_images(teacher, suite.images(config.env))
    if pupil is not None:
        warnings += check_images(pupil.policy, suite.images(config.env))
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    done = store.read_outcomes(config.out, Collected)
    stored = store.stored_episodes(config.out)
    write_run_record(config.out, config)
    ended: dict[str, Collected] = {}
    reports: list[FleetReport] = []
    lost: list[str] = []
    make_env = functools.partial(suite.make, config=config.env)
    finish = functools.partial(store_episode, config.out, config.keep_failed, facts(config))
    with fleet_of(make_env, teacher, config.fleet, config.serving, pupil) as fleet:
        while specs:
            todo = [spec for spec in specs if not _is_done(spec, done, stored)]
            with cli.progress("collect" if not reports else "collect more", len(specs)) as advance:
                for _ in range(len(specs) - len(todo)):
                    advance("already there")
                report = fleet.run(todo, finish, functools.partial(_count, advance))
            reports.append(report)
            names = [spec.key.name for spec in specs]
            outcomes, lost = store.account_for(config.out, Collected, names, report.lost, done)
            ended |= outcomes
            specs = [] if lost else plan_episodes(config, teacher, pupil, list(ended.values()))
    warnings += short_of(config, list(ended.values()))
    summary = summarise(config, teacher.name, list(ended.values()), lost, reports, warnings)
    store.write_summary(config.out, summary)
    if lost:
        raise UserError(
            f"{len(lost)} of {summary.episodes.planned} episodes lost their simulator "
            f"{config.fleet.max_retries + 1} times (first: {lost[0]}); the others are in {config.out}; rerun the same "
            "command to try again"
        )
    return summary


def _count(advance: Callable[[str], None], _: EpisodeSpec, outcome: Collected) -> None:
    advance("kept" if outcome.kept else "failed")


def find_pupil(config: CollectConfig, teacher: LocalPolicy | SharedPolicy) -> Pupil | None:
    """The student that --student names, to act before its teacher or beside it."""
    how = config.dagger
    if how.student is None:
        return None
    if how.mix is not None and isinstance(teacher, LocalPolicy) and teacher.plans:
        raise UserError(
            f"--mix: the teacher {config.teacher} plans and must act itself; leave --mix out: it takes over"
        )
    if not how.student.is_dir():
        raise UserError(f"--student: {how.student} is not there; {what_a_checkpoint_is(how.student)}")
    from vlaad_ray.deploy.loading import describe  # torch, which a teacher alone does without

    check_device(how.student_device, "--student-device")
    serving = ServingConfig(replicas=how.student_replicas if how.student_device == "cuda" else 0)
    serving = on_device(serving, how.student_device)
    acting = Acting(device=how.student_device)
    policy = student_policy(how.student.resolve(), describe(how.student), acting, serving)
    return Pupil(policy, serving, how, config.budget)


def plan_episodes(
    config: CollectConfig,
    teacher: LocalPolicy | SharedPolicy,
    pupil: Pupil | None = None,
    ended: Sequence[Collected] = (),
) -> list[EpisodeSpec]:
    """The episodes to run next, in a fixed order, when those of `ended` have run. Checks all that can be checked.

    Without --keep all at first and none then; with it, of each task as many further starts as it lacks kept episodes.
    What is run depends on no more than what episodes ended with: not on the number of actors, nor on who was first.
    """
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
    if config.keep and config.placements:
        raise UserError("--keep tries as many placements as it takes; leave --placements out, or give it 0")
    if not tasks or not (stored or config.placements or config.keep):
        raise UserError("nothing to collect: give --tasks and --init-states, --placements or --keep")
    check_starts(config.suite, suite, tasks, stored)
    check_teacher_noise(config.teacher_noise, suite.embodiment)
    content = config_hash(
        version=CONTENT_VERSION,
        env=config.env,
        noise=config.noise,
        image_every=config.image_every,
        **teacher.settings,
        **named_settings(config, "teacher_noise", "budget"),
        **({"student": [pupil.policy.settings, named_settings(pupil.config)]} if pupil else {}),
    )
    policy = teacher.name
    if pupil is not None:
        policy += f"-{'after' if pupil.config.mix is None else 'beside'}-{pupil.policy.name}"

    def start(number: int) -> InitState:
        """The stored init states come first, then placements without end."""
        if number < len(stored):
            return InitState("stored", stored[number])
        return InitState("placement", number - len(stored))

    keep = keep_of(config, tasks)
    specs = []
    for task in tasks:
        mine = [outcome for outcome in ended if outcome.task == task]
        wanted = len(stored) + config.placements - len(mine)
        if config.keep:
            lacking = keep[task] - sum(outcome.kept for outcome in mine)
            wanted = min(lacking, config.tries * keep[task] - len(mine))
        specs += [
            EpisodeSpec(
                key=EpisodeKey(config.suite, task, start(len(mine) + number), policy, config.seed, content),
                image_every=config.image_every,
                noise=config.noise,
                teacher_noise=config.teacher_noise,
                budget=config.budget or None,
            )
            for number in range(wanted)
        ]
    return specs


def keep_of(config: CollectConfig, tasks: Sequence[int]) -> dict[int, int]:
    """Task -> episodes to keep: --keep each, or shared out by how often a task failed in the evaluation --need.

    A task that never failed there still gets some: MIN_NEED of one that always did.
    """
    if config.need is None:
        return dict.fromkeys(tasks, config.keep)
    if not config.keep:
        raise UserError("--need shares out the episodes of --keep; give it, too")
    failed: dict[int, list[bool]] = {}
    for outcome in store.read_evaluation(config.need).values():
        if outcome.suite == config.suite:
            failed.setdefault(outcome.task, []).append(not outcome.success_ever)
    if missing := sorted(set(tasks) - failed.keys()):
        raise UserError(
            f"--need {config.need}: no finished evaluation of {config.suite} task {missing[0]}; evaluate it"
        )
    weights = {task: MIN_NEED + sum(failed[task]) / len(failed[task]) for task in tasks}
    share = config.keep * len(tasks) / sum(weights.values())
    return {task: max(1, round(share * weight)) for task, weight in weights.items()}


def settled(config: CollectConfig) -> CollectConfig:
    """The same with the environment's settings those of the chosen suite, where they were left at another's."""
    return replace(config, env=settings_of(f"suite {config.suite}", find_suite(config.suite).config, config.env))


def facts(config: CollectConfig) -> dict[str, Any]:
    """What every episode's footer says of how it was made, for stages that must not guess it from a hash."""
    return {"render": find_suite(config.suite).images(config.env).render, "teacher_noise": asdict(config.teacher_noise)}


def store_episode(out: Location, keep_failed: bool, extra: dict[str, Any], episode: Episode) -> Collected:
    """On the actor: keep a good episode, then record that it ended.

    Good means that the goal outlasts the release, and that a teacher had a part in it.
    """
    taught = len(episode) if episode.taught is None else int(episode.taught.sum())
    kept = episode.success_final and taught > 0
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
        taught=taught,
    )
    store.write_outcome(out, episode.key.name, outcome)
    return outcome


def _is_done(spec: EpisodeSpec, outcomes: Mapping[str, Collected], stored: Collection[str]) -> bool:
    outcome = outcomes.get(spec.key.name)
    if outcome is None:
        return False
    return not outcome.stored or spec.key.name in stored


def short_of(config: CollectConfig, ended: Sequence[Collected]) -> list[str]:
    """A warning for each task that has fewer episodes than --keep wanted when its tries were used up."""
    warnings = []
    for task, wanted in keep_of(config, parse_range(config.tasks)).items():
        mine = [outcome.kept for outcome in ended if outcome.task == task]
        if sum(mine) < wanted:
            warnings.append(
                f"task {task}: {sum(mine)} of {wanted} episodes kept after {len(mine)} tries; raise --tries or "
                "--budget, or look at its failures (--keep-failed)"
            )
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    return warnings


def summarise(
    config: CollectConfig,
    policy: str,
    ended: Sequence[Collected],
    lost: Sequence[str],
    reports: Sequence[FleetReport],
    warnings: Sequence[str],
) -> CollectSummary:
    """`policy`: the teacher's full name. `ended`: outcomes of all planned episodes but the lost ones."""
    kept = Counter(str(outcome.task) for outcome in ended if outcome.kept)
    failed = Counter(str(outcome.task) for outcome in ended if not outcome.kept)
    tasks = dict.fromkeys(str(outcome.task) for outcome in ended)
    steps, seconds = sum(report.steps for report in reports), sum(report.seconds for report in reports)
    retried, planned = sum(report.retried for report in reports), len(ended) + len(lost)
    return CollectSummary(
        suite=config.suite,
        teacher=config.teacher,
        episodes=EpisodeCounts(planned, kept.total(), failed.total(), retried, len(lost)),
        tasks={task: TaskCounts(kept[task], failed[task]) for task in tasks},
        frames=sum(outcome.steps for outcome in ended if outcome.kept),
        taught_frames=sum(outcome.taught for outcome in ended if outcome.kept),
        without_teacher=sum(outcome.success_final and not outcome.taught for outcome in ended),
        new_steps=steps,
        seconds=seconds,
        steps_per_second=steps / seconds if steps else 0.0,
        lost=tuple(lost),
        policy=policy,
        warnings=tuple(warnings),
        **software(),
    )


def show(summary: CollectSummary) -> Table:
    counts = {**vars(summary.episodes), "frames": summary.frames, "steps per second": summary.steps_per_second}
    return cli.key_value_table(f"Collected {summary.suite} with {summary.teacher}", counts)
