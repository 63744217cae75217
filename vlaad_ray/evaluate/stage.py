"""Stage 5: a policy acts closed loop on held-out init states; success rates with intervals, videos, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from vlaad_ray import files, store
from vlaad_ray.configs import (
    STEP_BUDGETS,
    ActuationConfig,
    EvalConfig,
    Location,
    UserError,
    config_hash,
    location,
    parse_range,
    teacher_noise_content,
    what_a_checkpoint_is,
)
from vlaad_ray.deploy import loading
from vlaad_ray.deploy.actuation import Actuated
from vlaad_ray.deploy.policy import StudentPolicy, TemporalEnsemble
from vlaad_ray.envs import libero
from vlaad_ray.evaluate import video
from vlaad_ray.rollout.episode import EpisodeSpec
from vlaad_ray.rollout.fleet import check_images, run_policy
from vlaad_ray.rollout.noise import check_teacher_noise
from vlaad_ray.runtime import cli, places
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.semantics import phases
from vlaad_ray.semantics.smoothness import meant_gripper
from vlaad_ray.stats import format_success, gripper_flips, paired, success_summary
from vlaad_ray.teachers import TEACHERS, find_teacher
from vlaad_ray.types import CONTROL_HZ, Episode, EpisodeKey, InitState, LocalPolicy, Policy, SharedPolicy, Trained

CONTENT_VERSION = 2
"""Raise it when the same checkpoint and settings would act otherwise, so that old outcomes are not taken for new."""
FLIP_WINDOW = 240
"""Gripper flips are reported per 240 control steps (12 s), as the paper does."""
STUDENT_EXECUTES = 2
"""Actions of a student's chunk that are executed by default."""
VIDEO_EVERY = 2
"""Control steps between two frames of a video."""


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Complete the evaluation that `config` describes; return (and write) its summary."""
    student = None if config.policy in TEACHERS else location(config.policy)
    reads = {"--policy": student, "--checkpoint": config.teacher_config.checkpoint, "--compare-to": config.compare_to}
    begin(config.out, config, reads)
    places.check(config)
    policy, training = resolve_policy(config)
    specs = plan_episodes(config, policy)
    baseline = read_results(config.compare_to) if config.compare_to else None
    warnings = check_training(specs, training) + check_images(policy, config.env)
    for warning in warnings:
        cli.console.print(f"[yellow]warning:[/] {warning}")
    write_run_record(config.out, config)
    done = store.read_outcomes(config.out)
    todo = [spec for spec in specs if spec.key.name not in done]
    with cli.progress(f"evaluate {policy.name}", len(specs)) as advance:
        for _ in range(len(specs) - len(todo)):
            advance("already there")
        successes = {"n": 0, "k": 0}

        def on_outcome(_: EpisodeSpec, outcome: dict[str, Any]) -> None:
            successes["n"] += 1
            successes["k"] += outcome["success_ever"]
            advance(f"success {successes['k']}/{successes['n']}")

        finish = functools.partial(store_outcome, config.out)
        report = run_policy(todo, config.env, policy, finish, config.fleet, config.serving, on_outcome)
    results, lost = store.account_for(config.out, [spec.key.name for spec in specs], report.lost, done)
    if lost:
        raise UserError(
            f"{len(lost)} of {len(specs)} episodes lost their simulator {config.fleet.max_retries + 1} times "
            f"(first: {lost[0]}); no rate is reported; rerun the same command to try again"
        )
    actuation = asdict(config.actuation)
    summary = {
        "policy": policy.name,
        "checkpoint": None if config.policy in TEACHERS else config.policy,
        "suite": config.suite,
        "init_states": config.init_states,
        "placements": config.placements,
        "seed": config.seed,
        "execute": policy.settings.get("execute"),
        **(dict.fromkeys(actuation) if config.policy in TEACHERS else actuation),
        "ensemble": policy.settings.get("ensemble"),
        "budget": config.budget or STEP_BUDGETS[config.suite],
        "render": config.env.render,
        **summarise(list(results.values())),
        "retried": report.retried,
        "seconds": report.seconds,
        "steps_per_second": report.steps / report.seconds if report.steps else 0.0,
        "warnings": warnings,
        **software(),
    }
    if baseline is not None:
        summary["paired"] = compare(results.values(), baseline)
        summary["paired"]["baseline"] = str(config.compare_to)
    summary["episodes"] = list(results)
    summary["videos"] = record_videos(config, specs, results, policy)
    store.write_json(config.out / "summary.json", summary)
    return summary


def resolve_policy(config: EvalConfig) -> tuple[LocalPolicy | SharedPolicy, dict[str, Any]]:
    """A teacher's name or a checkpoint directory -> (the policy, its training record)."""
    if config.policy in TEACHERS:
        return find_teacher(config.policy, config.teacher_config, config.suite, config.execute), {}
    directory = location(config.policy)
    if not directory.is_dir():
        names = ", ".join(TEACHERS)
        raise UserError(
            f"--policy: {config.policy!r} is neither a teacher ({names}) nor a checkpoint; "
            f"{what_a_checkpoint_is(config.policy)}"
        )
    name, training = loading.describe(directory)
    execute = config.execute or STUDENT_EXECUTES
    settings: dict[str, Any] = {"execute": execute, **asdict(config.actuation)}
    if not config.actuation.nudge_after:  # so names stay what they were before there was a choice
        del settings["nudge_after"]
    if config.ensemble is not None:  # likewise
        settings["ensemble"] = config.ensemble
    make = functools.partial(load_student, directory.resolve(), execute, config.actuation, config.ensemble)
    load_student(
        directory, execute, config.actuation, config.ensemble
    )  # a broken one, or bad settings, fail here, not on actors
    return LocalPolicy(name, make, settings, Trained(training.get("render"))), training


def load_student(
    directory: Location,
    execute: int,
    actuation: ActuationConfig,
    ensemble: float | None,
    _: libero.LiberoEnv | None = None,
) -> Policy:
    student = loading.load(directory)
    policy: Policy = StudentPolicy(student, execute)
    if ensemble is not None:
        policy = TemporalEnsemble(StudentPolicy(student), execute, ensemble)
    return Actuated(policy, actuation)


def plan_episodes(config: EvalConfig, policy: LocalPolicy | SharedPolicy) -> list[EpisodeSpec]:
    """One episode for each task and start."""
    libero.load_benchmark(config.suite)
    tasks, states = parse_range(config.tasks, "--tasks"), parse_range(config.init_states, "--init-states")
    starts = [InitState("stored", state) for state in states]
    starts += [InitState("placement", number) for number in range(config.placements)]
    if not tasks or not starts:
        raise UserError("nothing to evaluate: give --tasks and --init-states or --placements")
    for task in tasks:
        libero.check_task(config.suite, task)
        libero.check_init_states(config.suite, task, states)
    settings = {"execute": None, **policy.settings}
    check_teacher_noise(config.teacher_noise)
    settings |= teacher_noise_content(config.teacher_noise)
    content = config_hash(version=CONTENT_VERSION, env=config.env, budget=config.budget, **settings)
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


def store_outcome(out: Location, episode: Episode) -> dict[str, Any]:
    """On the actor: record how an episode ended."""
    meant = meant_gripper(episode.actions[:, -1])
    outcome = {
        "suite": episode.key.suite,
        "task": episode.key.task,
        "init": episode.key.init.label,
        "instruction": episode.instruction,
        "success_ever": episode.success_ever,
        "success_final": episode.success_final,
        "steps": episode.success_step if episode.success_step is not None else episode.budget,
        "recorded_steps": len(episode),
        "gripper_flips": gripper_flips(episode.actions[:, -1]),
        "gripper_flips_meant": gripper_flips(meant),
        "last_phase": phases.classify(episode.proprio, meant, episode.instruction)[-1],
    }
    store.write_outcome(out, episode.key.name, outcome)
    return outcome


def summarise(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success "ever" and "final" over all and by task, length of episodes, gripper flips."""

    def success(of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: success_summary([outcome[f"success_{name}"] for outcome in of]) for name in ("ever", "final")}

    tasks = sorted({outcome["task"] for outcome in outcomes})
    steps = sum(outcome["recorded_steps"] for outcome in outcomes)
    return {
        "success": success(outcomes),
        "tasks": {
            str(task): {
                **success(mine := [outcome for outcome in outcomes if outcome["task"] == task]),
                "instruction": mine[0]["instruction"],
            }
            for task in tasks
        },
        "gripper_flips_per_240": FLIP_WINDOW * sum(outcome["gripper_flips"] for outcome in outcomes) / steps,
        "gripper_flips_per_episode": sum(outcome["gripper_flips"] for outcome in outcomes) / len(outcomes),
        "steps_mean": sum(outcome["steps"] for outcome in outcomes) / len(outcomes),
    }


def read_results(out: Location) -> list[dict[str, Any]]:
    """The outcomes of another evaluation."""
    outcomes = list(store.read_evaluation(out).values())
    if not outcomes:
        raise UserError(f"{out} holds no evaluation; run jobs/eval.py --out {out} first")
    return outcomes


def compare(a: Sequence[Mapping[str, Any]] | Any, b: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Paired comparison of two evaluations on the starts that both have run, for both kinds of success."""

    def by_start(outcomes: Sequence[Mapping[str, Any]], name: str) -> dict[tuple[str, int, str], bool]:
        return {(o["suite"], o["task"], o["init"]): o[f"success_{name}"] for o in outcomes}

    if not by_start(a, "ever").keys() & by_start(b, "ever").keys():
        raise UserError("--compare-to: the two evaluations share no task and init state; run both on the same ones")
    return {name: paired(by_start(a, name), by_start(b, name)) for name in ("ever", "final")}


def record_videos(
    config: EvalConfig,
    specs: Sequence[EpisodeSpec],
    results: Mapping[str, Mapping[str, Any]],
    policy: LocalPolicy | SharedPolicy,
) -> list[str]:
    """Run some successes and failures once more, with the cameras on (episodes repeat exactly); paths of the MP4s."""
    chosen: list[EpisodeSpec] = []
    for wanted in (True, False):
        matching = [spec for spec in specs if results[spec.key.name]["success_ever"] == wanted]
        chosen += matching[:: max(1, len(matching) // config.videos)][: config.videos] if config.videos else []
    there = {path.stem for path in files.children(config.out / "videos", ".mp4")}
    todo = [replace(spec, image_every=VIDEO_EVERY) for spec in chosen if spec.key.name not in there]
    if todo:
        with cli.progress("videos", len(todo)) as advance:
            finish = functools.partial(store_video, config.out / "videos")
            run_policy(todo, config.env, policy, finish, config.fleet, config.serving, lambda *_: advance(""))
    return [f"videos/{spec.key.name}.mp4" for spec in chosen]


def store_video(folder: Location, episode: Episode) -> dict[str, Any]:
    """On the actor: write the recorded frames as MP4."""
    word = "success" if episode.success_ever else "failure"
    frames = []
    for step in range(0, len(episode), VIDEO_EVERY):
        seen = {camera: frames_of[step] for camera, frames_of in episode.images.items()}
        images = {camera: image for camera, image in seen.items() if image is not None}
        frames.append(video.frame(images, f"{word} · step {step} · {episode.instruction[:60]}"))
    path = video.write_mp4(folder / f"{episode.key.name}.mp4", frames, CONTROL_HZ / VIDEO_EVERY)
    return {"video": path.name}


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
