"""What ONNX Runtime and OpenVINO share: the network as three exported graphs, each for one observation at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlaad_ray.types import ActionChunk

PARTS = ("text", "perceive", "decide")
"""The graphs, by file name: tokens -> text features; images, proprio, text -> features; features -> output."""
Graph = Callable[..., np.ndarray]
"""A part, opened: its inputs in order, batch 1, to its only output."""
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
"""images [1, C, S, S, 3] uint8, proprio [1, P] float32, encoded text [1, D] float32."""


class GraphBackend:
    """A batch runs one by one: on CPUs eight at once took as long as eight times one (docs/backends.md)."""

    def __init__(
        self,
        name: str,
        text: Graph,
        perceive: Graph,
        decide: Graph,
        decode: Callable[[np.ndarray], list[ActionChunk]],
    ):
        """`decode`: as Backend.decode."""
        self.name, self.decode = name, decode
        self._text, self._perceive, self._decide = text, perceive, decide

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self._text(tokens[row : row + 1]) for row in range(len(tokens))])

    def output(self, images: np.ndarray, proprio: np.ndarray, text: np.ndarray) -> np.ndarray:
        rows = [slice(row, row + 1) for row in range(len(images))]
        return np.concatenate([self._decide(self._perceive(images[row], proprio[row], text[row])) for row in rows])
