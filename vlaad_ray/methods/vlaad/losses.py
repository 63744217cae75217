"""One loss for every objective: a weighted sum of parts (METHOD: L = L_full + alpha * L_img).

    L_path = sum_k sum_j w_j CE(logits[k, j], bin(a*[t+k, j])) / (K sum_j w_j),   w = (1, 1, 1, 2, 2, 2, 1)

The division only sets the scale: a uniform guess costs log(N) whatever K is. The auxiliary parts are plain
cross-entropy of the phase and `direction_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vlaad_ray.configs import TrainConfig
from vlaad_ray.methods.vlaad.learner import Answers

DIMENSION_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0)
"""Rotations doubled (VLA-AD, arXiv 2605.16241)."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each part; a part of weight 0 is not computed."""

    full: float
    """Path with the description."""
    image: float
    """Path without it."""
    phase: float = 0.0
    """Auxiliary head that names the phase."""
    direction: float = 0.0
    """Auxiliary head that finds the direction's text."""

    @property
    def auxiliary(self) -> bool:
        return bool(self.phase or self.direction)


class Targets(NamedTuple):
    """What the answers are held against."""

    bins: Tensor
    """[B, K, 7]."""
    phase: Tensor
    """[B]."""
    direction: Tensor | None = None
    """[B] column of the frame's own text among the batch's distinct ones."""


def loss_weights(config: TrainConfig) -> LossWeights:
    """METHOD's dual path and its auxiliary form, plain cloning, or both forms at once."""
    described = config.objective in ("dual_path", "both")
    hinted = config.objective in ("auxiliary", "both")
    return LossWeights(
        full=1.0 if described else 0.0,
        image=config.alpha if described else 1.0,
        phase=config.phase_weight if hinted else 0.0,
        direction=config.direction_weight if hinted else 0.0,
    )


@lru_cache(maxsize=4)
def smoothed_targets(bins: int, sigma: float, device: torch.device) -> Tensor:
    """[N, N]: row i is the target distribution for bin i, a Gaussian of `sigma` bins around it (0: one-hot)."""
    if sigma == 0:
        return torch.eye(bins, device=device)
    index = torch.arange(bins, device=device, dtype=torch.float32)
    return torch.softmax(-((index[None] - index[:, None]) ** 2) / (2 * sigma**2), dim=-1)


def path_loss(logits: Tensor, target_bins: Tensor, sigma: float) -> Tensor:
    """logits [B, K, 7, N], target_bins [B, K, 7] -> scalar, in nats an action dimension."""
    logits = logits.to(torch.float32)
    targets = smoothed_targets(logits.shape[-1], sigma, logits.device)[target_bins]
    cross_entropy = logits.logsumexp(-1) - (targets * logits).sum(-1)
    weights = torch.tensor(DIMENSION_WEIGHTS, device=logits.device)
    return (cross_entropy * (weights / weights.mean())).mean()


def direction_loss(similarity: Tensor, direction: Tensor) -> Tensor:
    """similarity [B, M] of frames and distinct texts, direction [B] each frame's own column -> scalar, in nats.

    CLIP's symmetric contrast (arXiv 2103.00020) where several frames share a text: a frame is told from the other
    texts, a text from the frames of other texts. Frames that share one are never each other's negatives:

        L = (mean_i -log softmax_j(S)[i, y_i]  +  mean_j -log sum_{i: y_i = j} softmax_i(S)[i, j]) / 2
    """
    own = functional.one_hot(direction, similarity.shape[1]).bool()
    texts = similarity.logsumexp(0) - similarity.masked_fill(~own, float("-inf")).logsumexp(0)
    return (functional.cross_entropy(similarity, direction) + texts.mean()) / 2


def student_loss(
    answers: Answers, targets: Targets, weights: LossWeights, sigma: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total to minimise, and its parts (detached); a part without an answer or a weight is left out."""
    parts: dict[str, Tensor] = {}
    if weights.full and answers.full is not None:
        parts["full"] = path_loss(answers.full, targets.bins, sigma)
    if weights.image:
        parts["image"] = path_loss(answers.image, targets.bins, sigma)
    if weights.phase and answers.phase is not None:
        parts["phase"] = functional.cross_entropy(answers.phase.float(), targets.phase)
    if weights.direction and answers.direction is not None and targets.direction is not None:
        parts["direction"] = direction_loss(answers.direction, targets.direction)
    of_part = {"full": weights.full, "image": weights.image, "phase": weights.phase, "direction": weights.direction}
    total = torch.zeros((), device=targets.bins.device)
    for name, loss in parts.items():
        total = total + of_part[name] * loss
    return total, {name: loss.detach() for name, loss in parts.items()}
