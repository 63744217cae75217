"""Routes: which decoder layers run, in writing and in numbers. Pure Python.

FLOPs are counted of one answer, two for a multiply and add, of what multiplies matrices: linear layers, convolutions
and attention's two products over the tokens that are there (a causal network is counted as its kernels compute, all
pairs). Norms, activations and embeddings are left out, as is a router (0.1 % of OpenVLA-7B's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlaad_ray.configs import UserError

Route = tuple[bool, ...]
"""For each decoder layer whether it runs; the first and the last always do."""


def full(depth: int) -> Route:
    return (True,) * depth


def of_layers(layers: Sequence[int], depth: int, source: str) -> Route:
    """The route that runs these layers. Raises UserError, naming the `source`, for one that no network can take."""
    if wrong := sorted(set(layers) - set(range(depth))):
        raise UserError(f"{source}: layer {wrong[0]} is none of the network's; they are 0 to {depth - 1}")
    if not {0, depth - 1} <= set(layers):
        raise UserError(f"{source}: the first and the last layer always run; add 0 and {depth - 1}")
    return tuple(index in layers for index in range(depth))


def parse(text: str, depth: int, source: str) -> Route:
    """0-7,11 -> the route that runs layers 0 to 7 and 11. Raises UserError for anything else."""
    layers: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise UserError(f"{source}: {text!r} is no route; write the layers that run, as 0-7,{depth - 1}")
        layers += range(int(first), int(last or first) + 1)
    return of_layers(layers, depth, source)


def written(route: Route) -> str:
    """The route as `parse` reads it."""
    pieces: list[str] = []
    start = 0
    while start < len(route):
        end = start
        while end < len(route) and route[end]:
            end += 1
        if end > start:
            pieces.append(f"{start}" if end == start + 1 else f"{start}-{end - 1}")
        start = end + 1
    return ",".join(pieces)


@dataclass(frozen=True)
class Cost:
    """What a network's answer takes: a part that always runs, and its decoder layers, each as much as the others."""

    fixed: float
    """Vision, projector, readout."""
    layer: float
    depth: int

    def of(self, route: Route) -> float:
        return self.fixed + self.layer * sum(route)

    def share(self, route: Route) -> float:
        """Of what the whole network takes, 0 to 1."""
        return self.of(route) / self.of(full(self.depth))


@dataclass(frozen=True)
class LlamaSizes:
    """Of a decoder of Llama's kind: what its layers cost depends on nothing else."""

    depth: int
    width: int
    mlp_width: int
    heads: int
    key_value_heads: int
    head_width: int

    @property
    def layer_weights(self) -> int:
        """Of its matrices; the two norms add 2 * width parameters."""
        attention = 2 * self.width * self.head_width * (self.heads + self.key_value_heads)
        return attention + 3 * self.width * self.mlp_width

    @property
    def layer_parameters(self) -> int:
        return self.layer_weights + 2 * self.width

    def layer_flops(self, tokens: float, pairs: float | None = None) -> float:
        """Of one layer. pairs: of query and key; None: all pairs of the tokens."""
        pairs = tokens**2 if pairs is None else pairs
        return 2 * tokens * self.layer_weights + 4 * pairs * self.heads * self.head_width


def vit_block_flops(tokens: float, width: int, mlp_width: int) -> float:
    """One pre-norm block: query, key, value, output, MLP, and attention over all pairs of `tokens`."""
    return 2 * tokens * (4 * width**2 + 2 * width * mlp_width) + 4 * tokens**2 * width
