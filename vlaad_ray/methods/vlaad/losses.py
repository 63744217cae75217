"""One loss for all of VLA-AD's objectives: a weighted sum of parts (METHOD: L = L_full + alpha * L_img).

Both paths cost what the student's own loss says of them (cross-entropy over bins, rotations doubled). The auxiliary
parts are plain cross-entropy of the phase and `direction_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlaad_ray.methods.method import Batch, Learner, Parts, action_loss
from vlaad_ray.methods.vlaad.config import Weighted
from vlaad_ray.methods.vlaad.learner import Answers


def direction_loss(similarity: Tensor, direction: Tensor) -> Tensor:
    """similarity [B, M] of frames and distinct texts, direction [B] each frame's own column -> scalar, in nats.

    CLIP's symmetric contrast (arXiv 2103.00020) where several frames share a text: a frame is told from the other
    texts, a text from the frames of other texts. Frames that share one are never each other's negatives:

        L = (mean_i -log softmax_j(S)[i, y_i]  +  mean_j -log sum_{i: y_i = j} softmax_i(S)[i, j]) / 2
    """
    own = functional.one_hot(direction, similarity.shape[1]).bool()
    texts = similarity.logsumexp(0) - similarity.masked_fill(~own, float("-inf")).logsumexp(0)
    return (functional.cross_entropy(similarity, direction) + texts.mean()) / 2


def loss(
    settings: Weighted, learner: Learner, answers: Answers, batch: Batch, smoothing: float
) -> tuple[Tensor, Parts]:
    """Total to minimise, and its parts (detached); a part without an answer or a weight is left out."""
    weights = settings.weights
    parts: Parts = {}
    if weights.full and answers.full is not None:
        parts["full"] = action_loss(learner.student, answers.full, batch, smoothing)
    if weights.image:
        parts["image"] = action_loss(learner.student, answers.image, batch, smoothing)
    if weights.phase and answers.phase is not None:
        parts["phase"] = functional.cross_entropy(answers.phase.float(), batch.phase)
    if weights.direction and answers.direction is not None:
        _, own = torch.unique(batch.columns["direction"], return_inverse=True)
        parts["direction"] = direction_loss(answers.direction, own)
    of_part = {"full": weights.full, "image": weights.image, "phase": weights.phase, "direction": weights.direction}
    total = torch.zeros((), device=batch.actions.device)
    for name, part in parts.items():
        total = total + of_part[name] * part
    return total, {name: part.detach() for name, part in parts.items()}
