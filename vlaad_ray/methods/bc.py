"""Behaviour cloning: do as the teacher did, from pictures, instruction and proprioception."""

from __future__ import annotations

from torch import Tensor

from vlaad_ray.configs import NoSettings
from vlaad_ray.methods.method import Batch, Learner, Method, Parts, Plain, action_loss


def loss(
    settings: NoSettings, learner: Learner, answers: Plain, batch: Batch, smoothing: float
) -> tuple[Tensor, Parts]:
    image = action_loss(learner.student, answers.image, batch, smoothing)
    return image, {"image": image.detach()}


BC = Method(loss=loss, parts=("image",))
