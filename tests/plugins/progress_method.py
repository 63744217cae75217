"""A method from outside: behaviour cloning whose student also has to tell how far an episode has come."""

import dataclasses
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Learner, Method, action_loss


@dataclasses.dataclass(frozen=True)
class ProgressConfig:
    progress_weight: float = 0.5
    """Weight of the squared error of the progress."""


class Answers(NamedTuple):
    image: Tensor
    progress: Tensor


class ProgressLearner(Learner):
    def __init__(self, settings, student, phases):
        super().__init__(student)
        self.head = nn.Linear(student.summary_width, 1)  # in training only

    def forward(self, images, proprio, instruction):
        features = self.student.perceive(images, proprio, self.student.encode_text(instruction))
        return Answers(self.student.decide(features), self.head(self.student.summarise(features))[:, 0])


def columns(episode, annotation):
    return {"progress": np.linspace(0, 1, len(episode), dtype=np.float32)}


def loss(settings, learner, answers, batch, smoothing):
    image = action_loss(learner.student, answers.image, batch, smoothing)
    progress = (answers.progress.float() - batch.columns["progress"]).square().mean()
    total = image + settings.progress_weight * progress
    return total, {"image": image.detach(), "progress": progress.detach()}


METHODS["progress"] = Method(loss, ("image", "progress"), ProgressConfig, columns=columns, learner=ProgressLearner)
