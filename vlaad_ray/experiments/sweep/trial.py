"""One trial: a training run of its own directory, and, if that is what counts, a closed-loop evaluation of it.

Runs in a small actor of Ray Tune; the training workers and the simulators have resources of their own. What a trial
does is stored as ever (a run, an evaluation), so a trial that is started once more continues or has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from vlaad_ray.configs import EvalConfig, Location, SweepConfig, TrainConfig, config_hash
from vlaad_ray.evaluate.stage import evaluate
from vlaad_ray.train import prepare
from vlaad_ray.train.stage import train

DEFAULT_PHASES = 9
"""Phases of the taxonomy where their number does not vary (the paper's choice)."""
Settings = Mapping[str, float]
"""What varies: name of an axis -> its value in a trial."""


def run_trial(settings: dict[str, float], sweep: SweepConfig, annotations: Mapping[int, Location]) -> None:
    """Ray Tune's trainable: reports every epoch as it is trained, then the whole."""
    config = trial_config(sweep, annotations, settings)
    summary = train(config, callbacks=[TuneReportCallback()])
    final: dict[str, Any] = {"epoch": summary.epochs, "validation": summary.validation, "finished": True}
    if sweep.goal != "accuracy":
        # Outside of the trial's placement group, which has no room for simulators.
        outside = ray.remote(evaluate).options(num_cpus=0, scheduling_strategy="DEFAULT")
        evaluation = ray.get(outside.remote(tuning_config(sweep, config)))
        final["success"] = asdict(evaluation.success.ever)
    tune.report(final)


def trial_config(sweep: SweepConfig, annotations: Mapping[int, Location], settings: Settings) -> TrainConfig:
    """The training run of a trial. `annotations`: number of phases -> directory."""
    values: dict[str, Any] = dict(settings)
    if annotations:
        values["annotations"] = annotations[values.pop("phases", DEFAULT_PHASES)]
    return prepare.with_values(replace(sweep.train, out=sweep.out / "trials" / trial_name(settings)), values)


def trial_name(settings: Settings) -> str:
    """Such as alpha0.5-lr0.00123-1f2e3d4c: readable, and different for different settings."""
    words = "-".join(f"{name}{value:.3g}" for name, value in settings.items())
    return f"{words}-{config_hash(**settings)}"


def tuning_config(sweep: SweepConfig, trained: TrainConfig) -> EvalConfig:
    """The closed-loop evaluation of a trial, on placements that are neither trained nor tested on."""
    tuning = sweep.tuning
    return EvalConfig(
        policy=str(trained.out / "checkpoint"),
        out=trained.out / "tuning",
        suite=tuning.suite,
        tasks=tuning.tasks,
        init_states="",
        placements=tuning.placements,
        seed=tuning.seed,
        execute=tuning.execute,
        videos=0,
        env=tuning.env,
        fleet=tuning.fleet,
    )
