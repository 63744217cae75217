"""A teacher for the suite of reach.py: it goes straight for the corner, which it reads from the environment."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from vlaad_ray.teachers import TEACHERS, Teacher
from vlaad_ray.types import ActionChunk, LocalPolicy


@dataclass(frozen=True)
class ExpertConfig:
    speed: float = 1.0
    """Size of its longest actions, 1: full."""


class Expert:
    needs_images = False

    def __init__(self, speed, env):
        self.speed, self.goal = speed, env.goal

    def reset(self, instruction):
        pass

    def infer(self, observation):
        way = 10 * (self.goal - observation.proprio[:2])
        action = self.speed * way / max(1.0, np.abs(way).max())
        return ActionChunk(action[None].astype(np.float32))


def describe(config, suite, execute):
    return LocalPolicy("reach_expert", partial(Expert, config.speed), settings={"speed": config.speed})


TEACHERS["reach_expert"] = Teacher(ExpertConfig, describe)
