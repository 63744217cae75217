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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vlaad_ray import annotate, cli, evaluate, rollout, store, train
from vlaad_ray.annotate.rules import rules_hash
from vlaad_ray.configs import (
    AnnotateConfig,
    CollectConfig,
    EvalConfig,
    StudyBudget,
    TeacherNoiseConfig,
    TrainConfig,
    UserError,
    config_hash,
    parse_range,
)

MACHINE = (
    *("out", "fleet", "serving", "data", "annotations", "policy", "frame_cache"),
    *("workers", "cpus_per_worker", "gpus_per_worker"),
)
"""Settings that don't change what a piece is: where it lies (its name says of what it was made) and who works on it."""


@dataclass(frozen=True)
class Workshop:
    budget: StudyBudget
    began: float = field(default_factory=time.monotonic)
    not_run: list[str] = field(default_factory=list)
    """Pieces that there was no time for."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return parse_range(self.budget.seeds, "--seeds")

    def dataset(self, suite: str, flip_rate: float = 0.0) -> Path | None:
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
        name = _named(f"{suite}-{budget.teacher}-flips{flip_rate:g}", config)
        config = dataclasses.replace(config, out=budget.out / "data" / name)
        summary = config.out / "summary.json"
        if not (summary.exists() and not store.read_json(summary)["episodes"]["lost"]):
            if not self._has_time(f"collect {name}"):
                return None
            rollout.collect(config)
        return config.out

    def annotations(self, data: Path, phases: int) -> tuple[Path, dict[str, Any]]:
        """The rules' labels of a dataset: (directory, summary of the stage). Takes seconds, so there is always time."""
        out = self.budget.out / "annotations" / f"{data.name}-phases{phases}-{rules_hash()}"
        number: Any = phases
        config = AnnotateConfig(data=data, out=out, phases=number)
        if (out / "summary.json").exists():
            summary = store.read_json(out / "summary.json")
            seen = summary["episodes"]
            if seen["annotated"] + seen["skipped"] == len(store.list_episodes(data)):
                return out, summary
        return out, annotate.annotate(config)

    def student(
        self, data: Path, seed: int, objective: str, phases: int = 9, **settings: Any
    ) -> tuple[Path, dict[str, Any]] | None:
        """A student: (run directory, summary of its training)."""
        budget = self.budget
        varying: dict[str, Any] = {"objective": objective, "seed": seed, **settings}
        config = TrainConfig(
            data=data,
            out=Path(),
            annotations=None,
            student=budget.student,
            backbone=budget.backbone,
            image_size=budget.student_pixels,
            validation_fraction=budget.validation_fraction,
            epochs=budget.epochs,
            max_minutes=budget.max_minutes,
            workers=budget.workers,
            gpus_per_worker=budget.gpus_per_worker,
            frame_cache=budget.out / "frames",
            **varying,
        )
        labels = "" if objective == "bc" else f"-phases{phases}-{rules_hash()}"
        words = "".join(f"-{name}{value:g}" for name, value in settings.items())
        name = _named(f"{data.name}-{objective}{labels}{words}-seed{seed}", config)
        out = budget.out / "runs" / name
        if not (out / "summary.json").exists():
            if not self._has_time(f"train {name}"):
                return None
            annotations = None if objective == "bc" else self.annotations(data, phases)[0]
            train.train(dataclasses.replace(config, out=out, annotations=annotations))
        summary = store.read_json(out / "summary.json")
        if not summary["validation"]:
            raise UserError(
                f"{data.name}: no episode is held out to measure accuracy on; collect more of each task "
                "(--init-states, --placements) or raise --validation-fraction"
            )
        return out, summary

    def evaluation(
        self, policy: str | Path, suite: str, flip_rate: float = 0.0, gripper_dwell: int = 10, videos: int = 0
    ) -> Path | None:
        """A teacher's name or a run directory, closed loop on the held-out states: directory of its outcomes."""
        budget = self.budget
        config = EvalConfig(
            policy=str(policy / "checkpoint") if isinstance(policy, Path) else policy,
            out=Path(),
            suite=suite,
            tasks=budget.tasks,
            init_states=budget.eval_init_states,
            execute=0 if isinstance(policy, Path) else budget.teacher_execute,
            gripper_dwell=gripper_dwell,
            videos=videos,
            teacher_config=budget.teacher_config,
            serving=budget.serving,
            teacher_noise=TeacherNoiseConfig(flip_rate=flip_rate),
            env=budget.env,
            fleet=budget.fleet,
        )
        of = policy.name if isinstance(policy, Path) else f"{suite}-{policy}-flips{flip_rate:g}"
        name = _named(of, config)
        config = dataclasses.replace(config, out=budget.out / "evaluations" / name)
        if not (config.out / "summary.json").exists():
            if not self._has_time(f"evaluate {name}"):
                return None
            evaluate.evaluate(config)
        return config.out

    def _has_time(self, piece: str) -> bool:
        minutes = self.budget.minutes
        if minutes is not None and time.monotonic() - self.began > 60 * minutes:
            self.not_run.append(piece)
            return False
        cli.console.rule(piece)
        return True


def check_objective(objective: str) -> None:
    """Raises UserError for one that TrainConfig does not know: before hours of collecting."""
    known = get_args(get_type_hints(TrainConfig)["objective"])
    if objective not in known:
        raise UserError(f"there is no objective {objective!r} to train with; choose from {', '.join(known)}")


def _named(words: str, config: Any) -> str:
    """`words` and a hash of all settings that change what is made."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in MACHINE}
    return f"{words}-{config_hash(words=words, settings=json.dumps(settings, sort_keys=True, default=str))}"
