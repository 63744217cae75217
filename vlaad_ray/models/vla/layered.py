"""What a VLA must offer so that its decoder layers can be gated: tokens to begin with, layers, a readout.

Notation: B batch, C cameras, S image size, L words of an instruction, T tokens of a sequence, D width of the decoder,
K chunk length, A numbers in an action, N bins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """What the decoder layers start from: pictures, instruction, and action slots or action tokens. Row by row."""

    hidden: Tensor
    """[B, T, D] embedded tokens."""
    present: Tensor
    """[B, T] bool: not padding."""
    positions: Tensor
    """[B, T] int64."""
    vision: Tensor
    """[B, T] bool: a picture's tokens."""
    text: Tensor
    """[B, T] bool: the instruction's tokens, without padding."""
    shared: tuple[Tensor, ...] = ()
    """What every layer of this network needs beside, computed once: [B, …] each (attention's mask, rotary angles)."""

    def rows(self, chosen: Tensor) -> Inputs:
        """Those of the rows `chosen` [R] int64."""
        return Inputs(
            self.hidden.index_select(0, chosen),
            self.present.index_select(0, chosen),
            self.positions.index_select(0, chosen),
            self.vision.index_select(0, chosen),
            self.text.index_select(0, chosen),
            tuple(part.index_select(0, chosen) for part in self.shared),
        )


class Layered(ABC):
    """A VLA whose decoder layers can be gated.

    Layers are residual: h <- F_l(h). A gate g_l in [0, 1] makes that h <- h + g_l (F_l(h) - h); 0 skips the layer.
    """

    depth: int
    """Decoder layers."""
    width: int
    """D."""

    @abstractmethod
    def embed(self, images: Tensor, proprio: Tensor, instruction: Tensor, actions: Tensor | None = None) -> Inputs:
        """images [B, C, S, S, 3] uint8, proprio [B, P] float32, instruction [B, L] token ids.

        actions [B, K, A]: what an autoregressive network is to have said so far (teacher forcing); others ignore them.
        """

    @abstractmethod
    def layer(self, index: int, hidden: Tensor, inputs: Inputs) -> Tensor:
        """F_l(h), the whole residual block: [B, T, D] -> [B, T, D]. `inputs`: of the same rows."""

    @abstractmethod
    def readout(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """After the last layer: final norm and head, [B, T, D] -> [B, K, A, N] logits of action bins."""
