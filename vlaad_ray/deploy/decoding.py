"""From what a student's network says to what it tells a robot: the same for every backend.

Notation: B batch, K chunk length, A numbers in an action, N bins.
"""

from __future__ import annotations

import numpy as np
import torch

from vlaad_ray.models.student.preprocess import bins_to_actions, closing_logit, translation_spread
from vlaad_ray.types import ActionChunk


def decode_bins(logits: np.ndarray) -> list[ActionChunk]:
    """[B, K, A, N] -> an answer for each: means over bins in [-1, 1], so that no action leaves that range.

    Raises FloatingPointError for logits that are not finite: no action.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError("the student's logits are not finite: its weights are broken, train it again")
    said = torch.from_numpy(logits)
    # All K at once, also where few are executed: a product of another shape rounds otherwise, and episodes would not
    # repeat exactly.
    actions = bins_to_actions(said).numpy()
    closing = closing_logit(said).sigmoid().numpy()
    spread = translation_spread(said).numpy()
    return [
        ActionChunk(each, closing=odds, spread=width)
        for each, odds, width in zip(actions, closing, spread, strict=True)
    ]
