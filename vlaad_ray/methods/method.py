"""The door for methods: from columns of the data to a loss. Everything else about training is the same for all of them.

Notation: B batch, C cameras, S image size, K chunk length, A numbers in an action, L tokens, T steps of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vlaad_ray.configs import Location, NoSettings
from vlaad_ray.models.student.model import Student
from vlaad_ray.types import Annotation, Episode

Columns = Mapping[str, Sequence[str] | np.ndarray]
"""Name -> [T] texts, or an array [T, …] of numbers."""


@dataclass(frozen=True)
class Batch:
    """Frames on a worker's device."""

    images: Tensor
    """[B, C, S, S, 3] uint8."""
    proprio: Tensor
    """[B, proprio_dim] float32."""
    instruction: Tensor
    """[B, L] token ids."""
    actions: Tensor
    """[B, K, A] float32: what the teacher asked for from this frame on."""
    phase: Tensor
    """[B] index into the phases of the data."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """The method's own: of texts [B] int64, rows of `texts`; of numbers [B, …]."""
    texts: Tensor | None = None
    """[all texts of the data, L] token ids."""
    weights: Tensor | None = None
    """[A] or [K, A] how much each number of a chunk weighs in the loss; None: as `dimension_weights` has it."""

    def said(self, column: str) -> Tensor:
        """[B, L] token ids of a column of texts."""
        assert self.texts is not None
        return self.texts[self.columns[column]]


class Answers(Protocol):
    """What a method's forward gives: whatever its loss needs, and `image`."""

    @property
    def image(self) -> Tensor:
        """The student's output [B, K, …] as it will be deployed, which accuracy is measured on."""


class Learner(nn.Module):
    """What is trained: a student, and in subclasses whatever training alone has.

    One forward for all that a loss needs, so that workers which train together wrap one module.
    """

    done: float = 0.0
    """Share of the training that is over, 0 to 1, for schedules: training sets it before each step."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Plain:
        return Plain(self.student(images, proprio, instruction))


class Plain(NamedTuple):
    """The student's own output and nothing else."""

    image: Tensor


@dataclass(frozen=True)
class Material:
    """What a method is about to be used on."""

    start_from: Location | None
    """Checkpoint that training starts from."""
    episodes: Mapping[str, str]
    """Name -> hash of its content."""
    phases: Sequence[str]
    """Of the data."""


def no_columns(episode: Episode, annotation: Annotation | None) -> Columns:
    return {}


def reads_nothing(settings: Any) -> Mapping[str, Location]:
    return {}


def nothing_to_check(settings: Any, material: Material) -> Mapping[str, str]:
    return {}


def nothing_stored(settings: Any, episode: Episode) -> Columns:
    return {}


def leaves_nothing(learner: Any, folder: Path) -> None:
    """The student is all there is."""


def plain_learner(settings: Any, student: Student, phases: Sequence[str]) -> Learner:
    return Learner(student)


def plain_forward(settings: Any, model: nn.Module, batch: Batch) -> Plain:
    answers: Plain = model(batch.images, batch.proprio, batch.instruction)
    return answers


def trained_student(learner: Learner) -> Student:
    return learner.student


Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """How a student is taught. Functions get the method's own settings, a value of `config`."""

    loss: Callable[[Any, Learner, Any, Batch, float], tuple[Tensor, Parts]]
    """(settings, learner, answers, batch, TrainConfig.target_sigma) -> total to minimise, and its parts, detached."""
    parts: tuple[str, ...]
    """Names of all parts that there may be, for the records."""
    config: type[Any] = NoSettings
    """Settings (flags) of its own, with their bounds (configs.bounds)."""
    annotated: bool = False
    """Whether episodes must be annotated."""
    columns: Callable[[Episode, Annotation | None], Columns] = no_columns
    """What it needs of an episode beside pictures, proprioception, instruction, actions and phases."""
    phases: bool = False
    """Whether it trains on phases, too: data with other ones is other data then."""
    learner: Callable[[Any, Student, Sequence[str]], Learner] = plain_learner
    """(settings, student, phases of the data) -> what is trained."""
    forward: Callable[[Any, nn.Module, Batch], Answers] = plain_forward
    """Calls the learner, or what wraps it for several workers. In bf16 where training is."""
    finish: Callable[[Any], Student] = trained_student
    """Trained learner -> the student that is deployed."""
    reads: Callable[[Any], Mapping[str, Location]] = reads_nothing
    """Flag -> a directory of its own that it reads."""
    check: Callable[[Any, Material], Mapping[str, str]] = nothing_to_check
    """Before any work: what else must not change under a run. Raises UserError for what it cannot be used on."""
    stored: Callable[[Any, Episode], Columns] = nothing_stored
    """Further columns, numbers only, from a directory of its own that `check` has looked at."""
    leave: Callable[[Any, Path], None] = leaves_nothing
    """(trained learner, folder of the checkpoint): writes what is kept beside the student."""


def action_loss(student: Student, output: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """How far an output is from the batch's actions -> scalar."""
    weights = dimension_weights(batch.actions) if batch.weights is None else batch.weights
    return student.imitation_loss(output, batch.actions, weights, smoothing)


POSE_AND_GRIPPER = (1.0, 2.0, 1.0)
"""Of translations, rotations, gripper: rotations doubled (VLA-AD, arXiv 2605.16241)."""


def dimension_weights(actions: Tensor, weights: tuple[float, float, float] = POSE_AND_GRIPPER) -> Tensor:
    """[A] weights of the numbers of `actions` [..., A]; all alike unless they are a pose and a gripper."""
    count = actions.shape[-1]
    translation, rotation, gripper = weights
    pose_and_gripper = (*[translation] * 3, *[rotation] * 3, gripper)
    return torch.tensor(pose_and_gripper if count == len(pose_and_gripper) else (1.0,) * count, device=actions.device)
