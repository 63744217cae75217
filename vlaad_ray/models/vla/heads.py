"""What each decoder layer knows of the action: a head a layer, in training only (ActDistill, arXiv 2511.18082).

Notation: B batch, T tokens, L decoder layers, D their width, W a head's own width, S size of the semantics, H attention
heads, K chunk length, A numbers in an action.

The authors' code computes exp of unscaled products over padded tokens, too, and takes 177 M parameters a layer of 4096.
Here affinities are scaled and stay logarithms, padding is masked, a token always is its own neighbour, so that none
becomes 0, and tokens are projected to W first (2 M).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

REVISION = 1
"""Of what heads compute: what heads of another one left is not read."""


@dataclass(frozen=True)
class HeadsConfig:
    """Shape of the heads of a network."""

    layers: int
    """L."""
    layer_width: int
    """D."""
    chunk: int
    """K."""
    action_dim: int
    """A."""
    kind: Literal["graph", "mean"] = "graph"
    """mean: each token by itself, then their mean; of the same size, to see what the graph is good for."""
    semantics: int = 128
    """S."""
    width: int = 256
    """W."""
    neighbours: int = 8
    """That a token listens to, beside itself."""
    attention_heads: int = 4
    """H."""


class Known(NamedTuple):
    """What heads say."""

    semantics: Tensor
    """s_l: [B, L, S]."""
    actions: Tensor
    """a_l: [B, L, K, A]."""


class Heads(nn.Module):
    """A head for each layer."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([Head(config) for _ in range(config.layers)])

    def forward(self, states: Sequence[Tensor], seen: Tensor) -> Known:
        """states: L of [B, T, D], after each layer; seen [B, T] bool: the tokens that count."""
        known = [head(state, seen) for head, state in zip(self.layers, states, strict=True)]
        return Known(torch.stack([s for s, _ in known], 1), torch.stack([a for _, a in known], 1))


class Head(nn.Module):
    """Of one layer: its tokens -> s_l -> a_l."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.chunk, width = config.chunk, config.width
        self.norm = nn.LayerNorm(config.layer_width)
        self.project = nn.Linear(config.layer_width, width)
        self.pool = GraphPool(config) if config.kind == "graph" else MeanPool(config)
        self.semantics = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.semantics))
        self.actions = nn.Sequential(
            nn.Linear(config.semantics, width), nn.GELU(), nn.Linear(width, config.chunk * config.action_dim)
        )

    def forward(self, state: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """state [B, T, D], seen [B, T] bool -> s_l [B, S], a_l [B, K, A]."""
        semantics = self.semantics(self.pool(self.project(self.norm(state)), seen))
        return semantics, self.actions(semantics).unflatten(1, (self.chunk, -1))


class MeanPool(nn.Module):
    """[B, T, W] -> [B, W]: the mean of what a network of the graph's size makes of each token."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        width = config.width
        inner = (1 + config.attention_heads) * width
        self.tokens = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width), nn.ReLU())

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        weights = seen.to(tokens.dtype)[..., None]
        mean: Tensor = (self.tokens(tokens) * weights).sum(1) / weights.sum(1)
        return mean


class GraphPool(nn.Module):
    """[B, T, W] -> [B, W]: tokens listen to their nearest in two rounds of attention (GAT, arXiv 1710.10903), and are
    pooled by attention.

    Neighbours of a token i are the tokens of the highest affinity e_ij = phi(x_i) . psi(x_j) / sqrt(W), and itself.
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        width = config.width
        self.neighbours = config.neighbours
        self.phi, self.psi = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.rounds = nn.ModuleList([GraphAttention(width, config.attention_heads) for _ in range(2)])
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        log_weights = self.log_weights(tokens, seen)
        for attention in self.rounds:
            tokens = attention(tokens, log_weights)
        scores = self.score(tokens)[..., 0].float().masked_fill(~seen, -math.inf)
        return (scores.softmax(1)[..., None].to(tokens.dtype) * tokens).sum(1)

    def log_weights(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """[B, T, T] float32: log of row i's weights on its neighbours j, which sum to 1; -inf on all others."""
        affinity = (self.phi(tokens) @ self.psi(tokens).transpose(1, 2)).float() / math.sqrt(tokens.shape[-1])
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        affinity = affinity.masked_fill(~(seen[:, None] | itself), -math.inf)
        others = affinity.masked_fill(itself, -math.inf)
        nearest = others.topk(min(self.neighbours, tokens.shape[1] - 1), dim=-1).indices
        listed = torch.zeros_like(affinity, dtype=torch.bool).scatter_(-1, nearest, True) | itself
        return affinity.masked_fill(~listed, -math.inf).log_softmax(-1)


class GraphAttention(nn.Module):
    """One round: each token takes from its neighbours by weight and attention, heads averaged, ReLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Linear(width, heads * width, bias=False)
        bound = math.sqrt(6 / (2 * width + 1))  # Glorot, of a vector that both ends of an edge meet
        self.receiver = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))
        self.sender = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))

    def forward(self, tokens: Tensor, log_weights: Tensor) -> Tensor:
        """tokens [B, T, W], log_weights [B, T, T] of receivers and senders -> [B, T, W]."""
        values = self.values(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, W]
        receiver = torch.einsum("bhtw,hw->bht", values, self.receiver)
        sender = torch.einsum("bhtw,hw->bht", values, self.sender)
        edges = functional.leaky_relu((receiver[..., :, None] + sender[..., None, :]).float(), 0.2)
        attention = (edges + log_weights[:, None]).softmax(-1).to(values.dtype)
        return (attention @ values).mean(1).relu()


def parameters_of(config: HeadsConfig) -> int:
    """Of all heads together."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Heads(config).parameters())
