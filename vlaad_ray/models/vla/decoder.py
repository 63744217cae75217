"""The loops over a Layered's layers: all of them gated, or only those on each row's route, with or without a cache.

Notation as in layered.py; L layers, R rows of a batch that run a layer, S tokens seen so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlaad_ray.models.vla.layered import Inputs, Layered

Layer = Callable[[int, Tensor, Inputs], Tensor]
"""Layered.layer, or one that also keeps a cache."""


def gated(network: Layered, inputs: Inputs, gates: Tensor | None = None) -> list[Tensor]:
    """Every layer, for training: h <- h + g_l (F_l(h) - h) -> L hidden states [B, T, D], each after its layer.

    gates [B, L]; None: all open. The first and the last layer have none, whatever `gates` says of them.
    """
    states: list[Tensor] = []
    hidden = inputs.hidden
    for index in range(network.depth):
        after = network.layer(index, hidden, inputs)
        if gates is not None and 0 < index < network.depth - 1:
            after = hidden + gates[:, index, None, None].to(hidden.dtype) * (after - hidden)
        states.append(hidden := after)
    return states


def routed(network: Layered, inputs: Inputs, routes: Tensor) -> Tensor:
    """Only the layers of each row's route: routes [B, L] bool -> the last hidden state [B, T, D].

    A row's answer is as if it were alone (to rounding): no row runs a layer because another does.
    """
    return along(network.layer, inputs, rows_of(routes))


def rows_of(routes: Tensor) -> list[Tensor | None]:
    """routes [B, L] bool -> for each layer its rows [R] int64, in order; None: all. One copy to the host.

    Layers that the same rows run share one tensor.
    """
    found: dict[tuple[int, ...], Tensor | None] = {tuple(range(len(routes))): None}
    layers: list[Tensor | None] = []
    for column in zip(*routes.tolist(), strict=True):
        rows = tuple(row for row, runs in enumerate(column) if runs)
        if rows not in found:
            found[rows] = torch.tensor(rows, dtype=torch.int64, device=routes.device)
        layers.append(found[rows])
    return layers


def along(layer: Layer, inputs: Inputs, rows: Sequence[Tensor | None]) -> Tensor:
    """Run each layer for its rows, as `rows_of` has them -> the last hidden state [B, T, D]."""
    hidden = inputs.hidden
    chosen: dict[int, Inputs] = {}
    for index, of_layer in enumerate(rows):
        if of_layer is None:
            hidden = layer(index, hidden, inputs)
        elif len(of_layer):
            if id(of_layer) not in chosen:
                chosen[id(of_layer)] = inputs.rows(of_layer)
            after = layer(index, hidden.index_select(0, of_layer), chosen[id(of_layer)])
            hidden = hidden.index_copy(0, of_layer, after.to(hidden.dtype))
    return hidden


class RouteCache:
    """Keys and values of an answer's tokens, layer by layer: a layer holds those of the rows that run it.

    In place of transformers' DynamicCache, which takes the number of tokens seen from layer 0 and expects every layer
    to see all tokens. A route holds for a whole answer, so a layer's rows never change, and what a layer was skipped
    for it never misses: cached equals recomputed. Positions and masks are the caller's.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """What attention of `layer` calls: new keys and values [R, heads, T, …] -> all so far [R, heads, S, …]."""
        if layer in self._layers:
            before = self._layers[layer]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        self._layers[layer] = keys, values
        return keys, values


def visible(present: Tensor, start: int = 0, causal: bool = True) -> Tensor:
    """present [B, S] bool -> [B, 1, S - start, S] bool: which tokens those from `start` on may attend to.

    Padding is seen by itself alone, else its softmax would be over nothing.
    """
    tokens = present.shape[1]
    order = torch.arange(tokens, device=present.device)
    queries = order[start:, None]
    seen = present[:, None, :].expand(-1, tokens - start, -1)
    if causal:
        seen = seen & (order <= queries)
    return (seen | (order == queries))[:, None]
