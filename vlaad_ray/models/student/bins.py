"""Actions as a distribution over uniform bins of [-1, 1]: how both networks here decide.

Notation: B batch, K chunk length, A numbers in an action, N bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vlaad_ray.models.student.model import Decoded, Student, StudentConfig
from vlaad_ray.models.student.preprocess import actions_to_bins, bins_to_actions, closing_logit, translation_spread

NEAR_BINS = 8
"""A prediction within so many of 256 bins (1/16 of full deflection) counts as near."""


@dataclass(frozen=True)
class BinnedConfig(StudentConfig):
    """Of a network that answers with logits over bins."""

    bins: int = 256
    """N, for each number of an action."""


class BinnedStudent(Student):
    """Output: [B, K, A, N] logits."""

    config: BinnedConfig

    def as_actions(self, logits: Tensor) -> Tensor:
        """[B, K * A * N] or [B, K, A * N] -> [B, K, A, N]."""
        return logits.view(-1, self.config.chunk, self.config.action_dim, self.config.bins)

    def decode(self, output: Tensor) -> Decoded:
        return decode(output, self.config.gripper)

    def imitation_loss(self, output: Tensor, actions: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy in nats a number of an action; the targets are smoothed by `smoothing` bins."""
        return cross_entropy(output, actions_to_bins(actions, self.config.bins), weights, smoothing)

    def right(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest bin is the one, or at most NEAR_BINS away."""
        away = (output.argmax(-1) - actions_to_bins(actions, self.config.bins)).abs()
        return away == 0, away <= NEAR_BINS


def decode(logits: Tensor, gripper: int | None) -> Decoded:
    """[B, K, A, N] logits -> actions, the chance that the gripper closes, the spread of translations."""
    closing = None if gripper is None else closing_logit(logits, gripper).sigmoid()
    return Decoded(bins_to_actions(logits, gripper), closing, translation_spread(logits, gripper))


@lru_cache(maxsize=4)
def smoothed_targets(bins: int, sigma: float, device: torch.device) -> Tensor:
    """[N, N]: row i is the target distribution for bin i, a Gaussian of `sigma` bins around it (0: one-hot)."""
    if sigma == 0:
        return torch.eye(bins, device=device)
    index = torch.arange(bins, device=device, dtype=torch.float32)
    return torch.softmax(-((index[None] - index[:, None]) ** 2) / (2 * sigma**2), dim=-1)


def cross_entropy(logits: Tensor, target_bins: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """logits [B, K, A, N], target_bins [B, K, A], weights [A] or [K, A] -> scalar, in nats.

    sum_k sum_j w_kj CE(logits[k, j], target[k, j]) / sum_k sum_j w_kj: a uniform guess costs log(N) whatever K is.
    """
    logits = logits.to(torch.float32)
    targets = smoothed_targets(logits.shape[-1], sigma, logits.device)[target_bins]
    each = logits.logsumexp(-1) - (targets * logits).sum(-1)
    return (each * (weights / weights.mean())).mean()
