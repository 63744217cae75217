"""From what a student's network says to what it tells a robot: the same for every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vlaad_ray.models.student import bins
from vlaad_ray.models.student.model import Decoded
from vlaad_ray.types import LIBERO, ActionChunk


def answers(output: np.ndarray, decode: Callable[[torch.Tensor], Decoded]) -> list[ActionChunk]:
    """An output [B, K, …] and the way its architecture decodes it -> an answer for each of B.

    Raises FloatingPointError for an output that is not finite: no action.
    """
    if not np.isfinite(output).all():
        raise FloatingPointError("the student's output is not finite: its weights are broken, train it again")
    # All K at once, also where few are executed: a product of another shape rounds otherwise, and episodes would not
    # repeat exactly.
    actions, closing, spread = (None if said is None else said.numpy() for said in decode(torch.from_numpy(output)))
    assert actions is not None
    return [
        ActionChunk(
            actions[row],
            closing=None if closing is None else closing[row],
            spread=None if spread is None else spread[row],
        )
        for row in range(len(actions))
    ]


def decode_bins(logits: np.ndarray, gripper: int | None = LIBERO.gripper) -> list[ActionChunk]:
    """The same of logits over bins [B, K, A, N]: means over bins in [-1, 1], so that no action leaves that range."""
    return answers(logits, lambda said: bins.decode(said, gripper))
