"""One loss for every objective: a weighted sum of parts (METHOD: L = L_full + alpha * L_img).

    L_path = sum_k sum_j w_j CE(logits[k, j], bin(a*[t+k, j])) / (K sum_j w_j),   w = (1, 1, 1, 2, 2, 2, 1)

The division only sets the scale: a uniform guess costs log(N) whatever K is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vlaad_ray.students.model import StudentLogits

Objective = Literal["dual_path", "bc"]
DIMENSION_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0)
"""Rotations doubled (VLA-AD, arXiv 2605.16241)."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each part; a part of weight 0 is not computed."""

    full: float
    """Path with the description."""
    image: float
    """Path without it."""


def loss_weights(objective: Objective, alpha: float) -> LossWeights:
    if objective == "bc":
        return LossWeights(full=0.0, image=1.0)
    return LossWeights(full=1.0, image=alpha)


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


def student_loss(
    logits: StudentLogits, target_bins: Tensor, weights: LossWeights, sigma: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total to minimise, and its parts (detached): `full` only where a description was given."""
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=target_bins.device)
    for name, path, weight in (("full", logits.full, weights.full), ("image", logits.image, weights.image)):
        if weight and path is not None:
            loss = path_loss(path, target_bins, sigma)
            parts[name] = loss.detach()
            total = total + weight * loss
    return total, parts
