"""A student in training: its answers, and those of the auxiliary heads that training alone has.

Notation as in method.py; P phases, M distinct direction texts in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlaad_ray.methods import method
from vlaad_ray.methods.method import Batch
from vlaad_ray.methods.vlaad.config import Weighted
from vlaad_ray.models.student.model import Student

TEMPERATURE = 0.07
MAX_SCALE = 100.0
"""CLIP's first temperature, and the bound on its inverse (arXiv 2103.00020)."""


class Answers(NamedTuple):
    """What a loss is computed from; None where an objective doesn't ask for it."""

    image: Tensor
    """Output [B, K, …] from image and instruction."""
    full: Tensor | None = None
    """The same with the description."""
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


class Learner(method.Learner):
    """A student that is also asked with the description, and the auxiliary heads."""

    def __init__(self, student: Student, phases: int) -> None:
        """`phases`: how many the auxiliary head tells apart; 0: no auxiliary heads."""
        super().__init__(student)
        self.heads = AuxiliaryHeads(student.summary_width, phases, student.config.text_width) if phases else None

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        proprio: Tensor,
        instruction: Tensor,
        description: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> Answers:
        """As a student's forward; description [B, L], `directions` [M, L]: the batch's distinct direction texts."""
        student = self.student
        features = student.perceive(images, proprio, student.encode_text(instruction))
        full = None if description is None else student.decide(features, student.encode_text(description))
        image = student.decide(features)
        if self.heads is None or directions is None:
            return Answers(image, full)
        said = student.text_vector(student.embed_text(directions))
        return Answers(image, full, *self.heads(student.summarise(features), said))


def learner(settings: Weighted, student: Student, phases: Sequence[str]) -> Learner:
    return Learner(student, len(phases) if settings.weights.auxiliary else 0)


def answer(settings: Weighted, model: nn.Module, batch: Batch) -> Answers:
    weights = settings.weights
    described = batch.said("description") if weights.full else None
    directions = None
    if weights.auxiliary:
        assert batch.texts is not None
        directions = batch.texts[torch.unique(batch.columns["direction"])]
    answers: Answers = model(batch.images, batch.proprio, batch.instruction, described, directions)
    return answers
