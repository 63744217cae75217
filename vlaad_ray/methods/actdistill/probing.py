"""Stage 1: heads learn the next K actions from the hidden states of a teacher that stays as it is.

The authors' code runs the student's class in training mode here, so that a router nobody has trained gates the teacher,
and dropout is on; and its targets are the last action of the chunk. Here the teacher is in evaluation mode, has no
gates, and the target is the whole chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlaad_ray.configs import UserError
from vlaad_ray.configs.distil import HeadsSettings
from vlaad_ray.methods.actdistill.teacher import teacher_config
from vlaad_ray.methods.method import Batch, Learner, Material, Parts
from vlaad_ray.models.student.model import Student
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.heads import Heads, HeadsConfig
from vlaad_ray.models.vla.mini import MiniVla, MiniVlaConfig


class Probed(NamedTuple):
    image: Tensor
    """The teacher's own output."""
    actions: Tensor
    """a_l: [B, L, K, A]."""


class Prober(Learner):
    """The teacher, frozen, and the heads."""

    student: MiniVla

    def __init__(self, teacher: MiniVla, config: HeadsConfig) -> None:
        super().__init__(teacher)
        self.student.requires_grad_(False)
        self.heads = Heads(config)

    def train(self, mode: bool = True) -> Prober:
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Probed:  # type: ignore[override]
        with torch.no_grad():
            inputs = self.student.embed(images, proprio, instruction)
            states = gated(self.student, inputs)
            image = self.student.readout(states[-1], inputs)
        return Probed(image, self.heads(states, inputs.present).actions)


def heads_config(settings: HeadsSettings, teacher: MiniVlaConfig) -> HeadsConfig:
    return HeadsConfig(
        layers=teacher.depth,
        layer_width=teacher.width,
        chunk=teacher.chunk,
        action_dim=teacher.action_dim,
        kind=settings.head,
        semantics=settings.semantics,
        width=settings.head_width,
    )


def check(settings: HeadsSettings, material: Material) -> Mapping[str, str]:
    if material.start_from is None:
        raise UserError("--objective probe reads a teacher: name its checkpoint with --start-from")
    teacher_config(material.start_from, "--start-from")
    return {}


def learner(settings: HeadsSettings, student: Student, phases: Sequence[str]) -> Prober:
    assert isinstance(student, MiniVla)
    return Prober(student, heads_config(settings, student.config))


def loss(
    settings: HeadsSettings, learner: Prober, answers: Probed, batch: Batch, smoothing: float
) -> tuple[Tensor, Parts]:
    """Squared error of the actions, averaged over the layers; `last` is that of the last layer's head."""
    errors = (answers.actions.float() - batch.actions[:, None]).square().mean((0, 2, 3))
    return errors.mean(), {"first": errors[0].detach(), "last": errors[-1].detach()}
