"""A student in training: its answers, and those of the auxiliary heads that training alone has.

Notation as in model.py; P phases, M distinct direction texts in a batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlaad_ray.models.student.model import Student

TEMPERATURE = 0.07
MAX_SCALE = 100.0
"""CLIP's first temperature, and the bound on its inverse (arXiv 2103.00020)."""


class Answers(NamedTuple):
    """What a loss is computed from; None where an objective doesn't ask for it."""

    image: Tensor
    """[B, K, 7, N] logits from image and instruction."""
    full: Tensor | None = None
    """[B, K, 7, N] logits with the description."""
    phase: Tensor | None = None
    """[B, P] logits."""
    direction: Tensor | None = None
    """[B, M] scaled cosine similarities of frames and distinct direction texts."""


class AuxiliaryHeads(nn.Module):
    """Phase and direction from what a student perceives without a description. Not part of any checkpoint deployed."""

    def __init__(self, width: int, phases: int, text_width: int) -> None:
        super().__init__()
        self.phase = nn.Linear(width, phases)
        self.direction = nn.Linear(width, text_width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def forward(self, summary: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """summary [B, W], encoded directions [M, D] -> phase logits [B, P], similarities [B, M]."""
        seen = functional.normalize(self.direction(summary).float(), dim=-1)
        said = functional.normalize(directions.float(), dim=-1)
        # A product of float32 in autocast would be rounded to bfloat16, at logits of up to 100.
        with torch.autocast(summary.device.type, enabled=False):
            similarity = self.log_scale.exp().clamp(max=MAX_SCALE) * seen @ said.T
        return self.phase(summary), similarity


class Learner(nn.Module):
    """One forward for all that an objective needs, so that workers which train together wrap one module."""

    def __init__(self, student: Student, phases: int) -> None:
        """`phases`: how many the auxiliary head tells apart; 0: no auxiliary heads."""
        super().__init__()
        self.student = student
        self.heads = AuxiliaryHeads(student.summary_width, phases, student.config.text_width) if phases else None

    def forward(
        self,
        images: Tensor,
        proprio: Tensor,
        instruction: Tensor,
        description: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> Answers:
        """As a student's forward; `directions` [M, L]: token ids of the batch's distinct direction texts."""
        student = self.student
        features = student.perceive(images, proprio, student.encode_text(instruction))
        image, full = student.answer(features, description)
        if self.heads is None or directions is None:
            return Answers(image, full)
        return Answers(image, full, *self.heads(student.summarise(features), student.embed_text(directions)))
