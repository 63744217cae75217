"""ActDistill (arXiv 2511.18082): heads that read a teacher's decoder layers, and a student that runs fewer of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from vlaad_ray.configs.bounds import NO_PREFIX, Elsewhere, Flat, above, at_least
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.places import Location
from vlaad_ray.configs.stages import TrainConfig

OF_THE_TEACHER = (
    "start_from",
    "student",
    "network",
    "objective",
    "method",
    "chunk",
    "image_size",
    "cameras",
    "proprio",
)
"""Settings of a training that follow from the checkpoint it starts from, or that the command sets."""
TYPED: tuple[Location, Location] = (tyro.MISSING, tyro.MISSING)
"""--data and --out, which have no default."""


@dataclass(frozen=True)
class HeadsSettings:
    """The heads that read a teacher's layers: --objective probe."""

    head: Literal["graph", "mean"] = "graph"
    """graph: tokens listen to their nearest before they are pooled. mean: each by itself, at the same size."""
    semantics: Annotated[int, at_least(1)] = 128
    """Numbers that a head makes of a layer; the authors have 512, of layers of 4,096."""
    head_width: Annotated[int, at_least(1)] = 256
    """Width that a head projects tokens to first."""


@dataclass(frozen=True)
class ActDistillConfig:
    """A student that is its teacher with fewer decoder layers: --objective actdistill."""

    probes: Machine[Location | None] = None
    """What `vlaad probe` left of this teacher and this data; needed but with --losses task."""
    budget: Annotated[float, above(0, up_to=1)] = 0.5
    """What an answer may take on average, of what the whole network takes."""
    count: Literal["flops", "milliseconds"] = "flops"
    """What is counted. milliseconds: of one answer on one thread, as `vlaad probe` measured them where it ran."""
    phase_budgets: str = ""
    """Budgets of single phases, as transporting=0.3,grasping=0.8; all others have --budget."""
    select: str = "router"
    """What chooses the layers. router: for each observation. first: as many of the first as the budget allows (and the
    last). gateprobe: those that the loss depends on most. Or the layers themselves, as 0-7,11."""
    losses: Literal["all", "task"] = "all"
    """task: the action loss and the budget alone."""
    gating: Literal["residual", "authors"] = "residual"
    """authors: training scales the whole hidden state by the gate's probability, and running skips below a half. To
    compare: the two disagree."""
    kappa: Annotated[float, at_least(0)] = 1.0
    """Weight of KL(teacher || student) over the actions' bins."""
    align: Annotated[float, at_least(0)] = 1.0
    """Weight of L_align + eta L_struct (alpha in the paper)."""
    eta: Annotated[float, at_least(0)] = 0.5
    """Weight of L_struct within it."""
    act: Annotated[float, at_least(0)] = 1.0
    """Weight of L_act (beta in the paper)."""
    gamma: Annotated[float, at_least(0)] = 2.0
    """How much more later layers weigh: (l / (L - 1)) ** gamma."""


@dataclass(frozen=True)
class ProbeConfig:
    """Learn what each decoder layer of a trained VLA knows of the action; keep it, frame by frame, for `vlaad distil`.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    checkpoint: Machine[Location]
    """The teacher: a checkpoint of mini_vla, as jobs/train.py wrote it."""
    heads: Flat[HeadsSettings] = HeadsSettings()
    gpus_per_task: Machine[Annotated[float, at_least(0)]] = 0.0
    """GPU of each task that keeps what heads say; 0: they compute on CPUs, one each."""
    train: Annotated[TrainConfig, NO_PREFIX, Elsewhere((*OF_THE_TEACHER, "annotations", "more_annotations"))] = (
        TrainConfig(*TYPED, epochs=5)
    )
    """Of the heads. --out is the directory of the probes."""

    @property
    def out(self) -> Location:
        return self.train.out


@dataclass(frozen=True)
class DistilConfig:
    """Train a student that is its teacher with fewer decoder layers, to a budget of FLOPs.

    Rerunning the same command continues an interrupted run; after a finished one it only shows what came of it.
    """

    checkpoint: Machine[Location]
    """The teacher: a checkpoint of mini_vla, as jobs/train.py wrote it."""
    distillation: Flat[ActDistillConfig] = ActDistillConfig()
    commonest: Machine[bool] = False
    """Also write OUT/commonest/, the student that always takes its commonest route."""
    train: Annotated[TrainConfig, NO_PREFIX, Elsewhere(OF_THE_TEACHER)] = TrainConfig(*TYPED, epochs=10, lr=3e-4)

    @property
    def out(self) -> Location:
        return self.train.out
