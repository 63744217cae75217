"""From what a student's network says to what it tells a robot: the same for every backend.

Notation: B batch, K chunk length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vlaad_ray.models.student.model import Decoded
from vlaad_ray.types import ActionChunk


def decode(output: np.ndarray, meaning: Callable[[Tensor], Decoded]) -> list[ActionChunk]:
    """[B, K, …] -> an answer for each. `meaning`: Student.decode of its architecture.

    Raises FloatingPointError for an output that is not finite: no action.
    """
    if not np.isfinite(output).all():
        raise FloatingPointError("the student's output is not finite: its weights are broken, train it again")
    # All K at once, also where few are executed: a product of another shape rounds otherwise, and episodes would not
    # repeat exactly.
    actions, closing, spread = meaning(torch.from_numpy(output))
    return [
        ActionChunk(
            actions[row].numpy(),
            closing=None if closing is None else closing[row].numpy(),
            spread=None if spread is None else spread[row].numpy(),
        )
        for row in range(len(actions))
    ]
