"""Where studies get what they measure: datasets, annotations, students, evaluations, made by the stages when missing.

Everything lies under OUT in a directory that is named by what determines it, so studies share it and a rerun repeats
nothing:

    OUT/data/NAME  OUT/annotations/NAME  OUT/runs/NAME  OUT/evaluations/NAME  OUT/frames (decoded pictures)

A piece that is missing when time is up is left out, and noted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from vlaad_ray import annotate, collect, evaluate, store, train
from vlaad_ray.annotate.rules import rules_hash
from vlaad_ray.configs import (
    ActuationConfig,
    AnnotateConfig,
    CollectConfig,
    EvalConfig,
    Location,
    OpenVlaConfig,
    ProbeConfig,
    RemoteConfig,
    ServingConfig,
    StudyBudget,
    TeacherNoiseConfig,
    TrainConfig,
    UserError,
    config_hash,
    content,
    parse_range,
)
from vlaad_ray.configs.studies import Gripper
from vlaad_ray.rollout.fleet import actor_count
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.runtime.nodes import fitted, refuse_hopeless
from vlaad_ray.runtime.placement import Node, Processes, Share, divide_groups
from vlaad_ray.summaries import AnnotateSummary, CollectSummary, TrainSummary
from vlaad_ray.train import prepare

ONCE_OF_ALL = {
    "alpha": 1.0,
    "backbone": "",
    "checkpoint_every": 1,
    "direction_weight": 0.05,
    "lora_rank": 8,
    "phase_weight": 0.1,
}
"""Settings that all trainings had before objectives and students had their own: names of students hold them still."""

Piece = CollectConfig | TrainConfig | EvalConfig | ProbeConfig
Trained = tuple[Location, TrainSummary]
"""A student: run directory, summary of its training."""
AS_IT_SAYS = ActuationConfig(gripper_dwell=0, gripper_memory=0, nudge_after=0)


@dataclass(frozen=True)
class Workshop:
    budget: StudyBudget
    began: float = field(default_factory=time.monotonic)
    not_run: list[str] = field(default_factory=list)
    """Pieces that there was no time for."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return parse_range(self.budget.seeds, "--seeds")

    def dataset(self, suite: str, flip_rate: float = 0.0) -> Location | None:
        """The teacher's successful episodes, or of the teacher with noise."""
        budget = self.budget
        config = CollectConfig(
            out=Path(),
            suite=suite,
            tasks=budget.tasks,
            init_states=budget.init_states,
            placements=budget.placements,
            teacher=budget.teacher,
            execute=budget.teacher_execute,
            image_every=budget.image_every,
            noise=budget.noise,
            teacher_config=budget.teacher_config,
            serving=budget.serving,
            teacher_noise=TeacherNoiseConfig(flip_rate=flip_rate),
            env=budget.env,
            fleet=budget.fleet,
        )
        name = named(f"{suite}-{budget.teacher}-flips{flip_rate:g}", config)
        config = dataclasses.replace(config, out=budget.out / "data" / name)
        collected = store.read_summary(config.out, CollectSummary)
        if collected is None or collected.episodes.lost:
            if not self.has_time(config):
                return None
            if budget.workers or budget.gpus_per_worker:
                cluster.connect()
                refuse_hopeless(lambda nodes: training_shares(budget, nodes))
            collect.collect(config)
        return config.out

    def annotations(self, data: Location, phases: int) -> tuple[Location, AnnotateSummary]:
        """The rules' labels of a dataset: (directory, summary of the stage). Takes seconds, so there is always time."""
        out = self.budget.out / "annotations" / f"{data.name}-phases{phases}-{rules_hash()}"
        number: Any = phases
        config = AnnotateConfig(data=data, out=out, phases=number)
        summary = store.read_summary(out, AnnotateSummary)
        if summary is not None:
            seen = summary.episodes
            if seen.annotated + seen.skipped == len(store.list_episodes(data)):
                return out, summary
        return out, annotate.annotate(config)

    def training(self, data: Location, seed: int, objective: str, phases: int = 9, **settings: Any) -> TrainConfig:
        """What trains a student, annotated; `settings` are TrainConfig's, beside those of the budget."""
        budget = self.budget
        plain = TrainConfig(
            data=data,
            out=Path(),
            annotations=None,
            student=budget.student,
            network=budget.network,
            objective=objective,
            seed=seed,
            image_size=budget.student_pixels,
            validation_fraction=budget.validation_fraction,
            epochs=budget.epochs,
            batch_size=budget.batch_size,
            max_minutes=budget.max_minutes,
            workers=budget.workers,
            gpus_per_worker=budget.gpus_per_worker,
            wait_for_nodes_s=budget.fleet.wait_for_nodes_s,
            frame_cache=budget.out / "frames",
        )
        usual, config = prepare.complete(plain), prepare.with_values(plain, settings)
        varying = {
            name: value for name, value in settings.items() if prepare.with_values(plain, {name: value}) != usual
        }
        annotated = prepare.find_method(objective).annotated
        labels = "" if not annotated else f"-phases{phases}-{rules_hash()}"
        words = "".join(f"-{name}{value:g}" for name, value in varying.items())
        name = named(f"{data.name}-{objective}{labels}{words}-seed{seed}", config)
        annotations = None if not annotated else self.annotations(data, phases)[0]
        return dataclasses.replace(config, out=budget.out / "runs" / name, annotations=annotations)

    def train(self, config: TrainConfig) -> Trained | None:
        """One student, with all of the cluster that the budget allows."""
        if not _is_done(config):
            if not self.has_time(config):
                return None
            train.train(config)
        return _read(config)

    def train_all(self, configs: Sequence[TrainConfig]) -> list[Trained | None]:
        """Students trained side by side: small ones gain little from more than one CPU, or GPU."""
        cluster.connect()
        budget = self.budget
        concurrent, held = fitted(
            lambda nodes: training_shares(budget, nodes), training_workers(budget), budget.fleet.wait_for_nodes_s
        )
        share: dict[str, Any] = {"workers": held.count, "cpus_per_worker": int(held.cpus)}
        self._side_by_side(train.train, [dataclasses.replace(config, **share) for config in configs], concurrent)
        return [_read(config) for config in configs]

    def evaluation(
        self, policy: str | Location, suite: str, flip_rate: float = 0.0, gripper: Gripper = "steady", videos: int = 0
    ) -> EvalConfig:
        """What evaluates a teacher (by name) or a student (its run directory) on the held-out states."""
        budget = self.budget
        # A teacher does as it says in any case: what the students' default is does not make another evaluation.
        raw = gripper == "raw" or isinstance(policy, str)
        config = EvalConfig(
            policy=policy if isinstance(policy, str) else str(policy / "checkpoint"),
            out=Path(),
            suite=suite,
            tasks=budget.tasks,
            init_states=budget.eval_init_states,
            execute=budget.teacher_execute if isinstance(policy, str) else 0,
            videos=videos,
            teacher_config=budget.teacher_config,
            serving=budget.serving if isinstance(policy, str) else ServingConfig(),
            teacher_noise=TeacherNoiseConfig(flip_rate=flip_rate),
            env=budget.env,
            fleet=budget.fleet,
            actuation=AS_IT_SAYS if raw else ActuationConfig(),
        )
        of = f"{suite}-{policy}-flips{flip_rate:g}" if isinstance(policy, str) else policy.name
        return dataclasses.replace(config, out=budget.out / "evaluations" / named(of, config))

    def evaluate(self, config: EvalConfig) -> Location | None:
        """The directory of its outcomes."""
        if not _is_done(config):
            if not self.has_time(config):
                return None
            evaluate.evaluate(config)
        return config.out

    def evaluate_all(self, configs: Sequence[EvalConfig]) -> list[Location | None]:
        """Students side by side, each in fewer simulators: those take seconds to begin."""
        cluster.connect()
        fleet = self.budget.fleet
        missing = sum(not _is_done(config) for config in configs)
        concurrent = max(1, min(missing, actor_count(fleet) // max(1, fleet.actors)))
        fleet = dataclasses.replace(fleet, actors=max(1, actor_count(fleet) // concurrent))
        self._side_by_side(
            evaluate.evaluate, [dataclasses.replace(config, fleet=fleet) for config in configs], concurrent
        )
        return [config.out if _is_done(config) else None for config in configs]

    def _side_by_side(self, stage: Callable[[Any], Any], configs: Sequence[Piece], concurrent: int) -> None:
        """Complete those that are missing and for which there is time, in their order."""
        missing = [config for config in configs if not _is_done(config)]
        if not missing:
            return
        task = ray.remote(stage).options(num_cpus=0)  # it only waits for its actors, which have CPUs of their own
        running: dict[ray.ObjectRef[Any], Piece] = {}
        with cli.progress(stage.__name__, len(missing), every_line=True) as advance, ExitStack() as after:
            after.callback(lambda: [ray.cancel(left) for left in running])
            for config in missing:
                if len(running) == concurrent:
                    advance(_wait_for_one(running))
                if self.has_time(config):
                    running[task.remote(config)] = config
            while running:
                advance(_wait_for_one(running))

    def has_time(self, piece: Piece) -> bool:
        """Whether a piece may still be begun; noted if not."""
        name = f"{piece.out.parent.name}/{piece.out.name}"
        minutes = self.budget.minutes
        if minutes is not None and time.monotonic() - self.began > 60 * minutes:
            if name not in self.not_run:
                self.not_run.append(name)
            return False
        cli.console.rule(name)
        return True


def training_shares(budget: StudyBudget, nodes: Sequence[Node]) -> tuple[int, Share]:
    """Trainings at a time, and workers of each, as far as the budget leaves it to the nodes. Raises NoRoom."""
    return divide_groups(nodes, training_workers(budget), budget.concurrent)


def training_workers(budget: StudyBudget) -> Processes:
    return Processes("worker", budget.workers or 1, gpus=budget.gpus_per_worker, share=True)


def _wait_for_one(running: dict[ray.ObjectRef[Any], Piece]) -> str:
    """Name of the next that is done, which is then taken out. Raises what it has raised."""
    (done,), _ = ray.wait(list(running), num_returns=1)
    piece = running.pop(done)
    cluster.get(done)
    return piece.out.name


def _is_done(piece: Piece) -> bool:
    return (piece.out / "summary.json").exists()


def _read(config: TrainConfig) -> Trained | None:
    """None: there was no time for it."""
    summary = store.read_summary(config.out, TrainSummary)
    if summary is None:
        return None
    if not summary.validation:
        raise UserError(
            f"{config.data.name}: no episode is held out to measure accuracy on; collect more of each task "
            "(--init-states, --placements) or raise --validation-fraction"
        )
    return config.out, summary


def check_objective(objective: str) -> None:
    """Raises UserError for one that TrainConfig does not know: before hours of collecting."""
    prepare.find_method(objective)


def named(words: str, config: Any) -> str:
    """`words` and a hash of all settings that change what is made."""
    settings = content(config)
    settings.pop("policy", None)  # the words name it
    if "teacher_config" in settings:  # whichever the teacher, names hold the settings of both kinds that have any
        of_all = {**content(OpenVlaConfig()), **content(RemoteConfig())}
        settings["teacher_config"] = {**of_all, **settings["teacher_config"]}
    if "method" in settings:
        settings = {**ONCE_OF_ALL, **settings.pop("network"), **settings.pop("method"), **settings}
    return f"{words}-{config_hash(words=words, settings=json.dumps(settings, sort_keys=True, default=str))}"
