"""Where a student's network runs: one module for each way, none of them imported before it is wanted.

pytorch runs a checkpoint; onnx_runtime and open_vino run what jobs/export.py wrote (graphs: what those two share). All
of them keep the network's last part, `decide`, in fp32: with it in bf16 only 96.4 % of the greedy bins stayed the same
(docs/backends.md), and it is a small part of the work.

Notation: B batch, C cameras, S image size, L tokens, D text features, K chunk length, N bins.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """A network between its preprocessing and its decoding. Not for several threads at once."""

    name: str
    """What tells it apart in a table: torch-bf16, openvino-int8."""

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        """[B, L] int64 -> [B, D] float32."""

    def logits(self, images: np.ndarray, proprio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """[B, C, S, S, 3] uint8, [B, 8] float32, [B, D] float32 -> [B, K, 7, N] float32."""
