"""Which layers an observation needs: a small network on the decoder's inputs (ActDistill, arXiv 2511.18082).

Decided once an observation, before the first layer. Notation as in layered.py; L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlaad_ray.models.vla.layered import Inputs

OPEN = 2.0
"""Every gate's first logit: a network that has just got a router runs all of its layers."""
WIDTHS_A_FEATURE = 8
"""A decoder of 4,096 gets 512 features a kind of token, and a router of 4.3 M parameters, as the authors' has."""
LEAST_FEATURES = 32


class Router(nn.Module):
    """Inputs -> logits [B, L - 2] of the gates of all layers but the first and the last, which always run.

    Vision and text tokens each -> linear, LayerNorm, mean and maximum over the tokens; those together -> one linear.
    Padding counts for nothing, so a gate depends on its own row alone.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        features = max(LEAST_FEATURES, width // WIDTHS_A_FEATURE)
        self.vision = nn.Sequential(nn.Linear(width, features), nn.LayerNorm(features))
        self.text = nn.Sequential(nn.Linear(width, features), nn.LayerNorm(features))
        self.gates = nn.Linear(4 * features, depth - 2)
        nn.init.normal_(self.gates.weight, std=0.01)
        nn.init.constant_(self.gates.bias, OPEN)

    def forward(self, inputs: Inputs) -> Tensor:
        # In fp32 whatever surrounds it: a logit near the threshold must not depend on the batch's rounding.
        with torch.autocast(inputs.hidden.device.type, enabled=False):
            hidden = inputs.hidden.to(self.gates.weight.dtype)
            pooled = [*_pool(self.vision(hidden), inputs.vision), *_pool(self.text(hidden), inputs.text)]
            logits: Tensor = self.gates(torch.cat(pooled, dim=1))
        return logits


def _pool(features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, F] and the tokens that count [B, T] -> their mean and maximum, [B, F] each."""
    counts = chosen[..., None]
    mean = (features * counts).sum(1) / counts.sum(1).clamp(min=1)
    return mean, features.masked_fill(~counts, torch.finfo(features.dtype).min).amax(1)


def with_ends(inner: Tensor) -> Tensor:
    """[B, L - 2] gates or routes -> [B, L]: the first and the last layer run."""
    end = inner.new_ones(len(inner), 1)  # of a network of two layers, inner is empty
    return torch.cat([end, inner, end], dim=1)


def hard_gates(logits: Tensor, noise: float = 0.0) -> Tensor:
    """logits [B, L - 2] -> gates [B, L] for training: 1 where a logit is above 0, with the gradient of its sigmoid.

    noise: scale of logistic noise on the logits (a binary concrete variable, arXiv 1611.00712), which tries layers out
    that are nearly decided; 0: the gates of run time.
    """
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + noise * torch.logit(uniform)
    soft = logits.sigmoid()
    # The bracket is exactly 0: forward is 0 or 1, backward the sigmoid's.
    return with_ends((logits > 0).to(soft.dtype) + (soft - soft.detach()))


def routes_of(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """logits [B, L - 2] -> routes [B, L] bool at run time: layers whose probability is above the threshold."""
    return with_ends(logits.sigmoid() > threshold)
