"""Searching for hyperparameters: what may vary, how it is searched, what counts as good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vlaad_ray.configs.bounds import Flat, above, at_least, between
from vlaad_ray.configs.common import EnvConfig, FleetConfig
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.places import Location
from vlaad_ray.configs.stages import TrainConfig


@dataclass(frozen=True)
class SpaceConfig:
    """What each setting may be: choices as 0.3,0.5,1.0, an interval as 0.3..1.0, or nothing, to leave it as given.

    Intervals are searched evenly, those of lr, phase-weight and direction-weight on a logarithmic scale; a grid takes
    choices only.
    """

    alpha: str = "0.3,0.5,0.8,1.0"
    """Weight of the path without description."""
    phases: str = ""
    """Phases of the taxonomy, out of 3,5,7,9,11,13. The rules annotate each once, for all trials. Nothing: 9."""
    phase_weight: str = ""
    """Weight of the phase in the auxiliary loss."""
    direction_weight: str = ""
    """Weight of the direction of motion in the auxiliary loss."""
    chunk: str = ""
    """K, actions the student answers with."""
    lr: str = "3e-4..3e-3"
    """Peak learning rate."""
    lora_rank: str = ""
    """Rank of the low-rank updates of a pretrained backbone."""


@dataclass(frozen=True)
class TuningConfig:
    """Where trials are tried closed loop: fresh placements that no student trains on, never the test states 20-49."""

    suite: str = "libero_object"
    tasks: str = "0-9"
    placements: Annotated[int, at_least(0)] = 2
    """Fresh random placements a task."""
    seed: Annotated[int, at_least(0)] = 1000
    """Seed of these placements: one that the data was not collected with."""
    execute: Annotated[int, at_least(0)] = 0
    """Actions of a chunk executed before the student is asked again; 0: 2."""
    env: Flat[Any] = EnvConfig()
    fleet: Machine[Flat[FleetConfig]] = FleetConfig()


@dataclass(frozen=True)
class SweepConfig:
    """Search for hyperparameters: each trial is a training run with the settings below, but for those that vary.

    Rerunning the same command continues an interrupted sweep; trials that ended are not repeated.
    """

    train: Flat[TrainConfig]
    """--out is the sweep's directory: summary.json, trials.md, trials.png, best.json, and a run for each trial."""
    search: Literal["random", "grid", "bayesian"] = "random"
    """grid: every combination of the choices. bayesian: Optuna's tree-structured Parzen estimator."""
    trials: Annotated[int, at_least(1)] = 8
    """How many; a grid has as many as it has points."""
    goal: Literal["accuracy", "success", "both"] = "accuracy"
    """accuracy: of actions on held-out episodes. success: closed loop, on the tuning placements. both: the trials that
    no other beats in both; the most successful of them is the best."""
    early_stopping: bool = True
    """Stop trials whose accuracy falls behind that of others at the same epoch (ASHA)."""
    grace_epochs: Annotated[int, at_least(1)] = 2
    """Epochs that every trial gets, with early stopping."""
    reduction: Annotated[int, at_least(2)] = 3
    """One in so many trials goes on at each rung of early stopping; rungs lie this factor of epochs apart."""
    search_seed: Annotated[int, between(0, 2**32 - 1)] = 0
    """Which points a random or Bayesian search tries."""
    concurrent: Machine[Annotated[int, at_least(0)]] = 0
    """Trials at a time; 0: as many as the cluster's CPUs, or its GPUs with --gpus-per-worker, hold."""
    minutes: Machine[Annotated[float | None, above(0)]] = None
    """Stop after this much: trials that then run count with what they have reached."""
    mlflow: Machine[str | None] = None
    """Also log to this MLflow tracking URI (needs mlflow). TensorBoard needs no flag: --logdir OUT/tune."""
    wandb: Machine[str | None] = None
    """Also log to this Weights & Biases project (needs wandb, and WANDB_API_KEY set)."""
    space: SpaceConfig = SpaceConfig()
    tuning: TuningConfig = TuningConfig()

    @property
    def out(self) -> Location:
        return self.train.out
