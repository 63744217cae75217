"""A suite on another robot: a point in a square goes to one of its corners."""

from dataclasses import dataclass

import numpy as np

from vlaad_ray.envs import SUITES, Suite
from vlaad_ray.types import Embodiment, Observation

GOALS = {"lower left": (-0.7, -0.7), "lower right": (0.7, -0.7), "upper left": (-0.7, 0.7), "upper right": (0.7, 0.7)}
TASKS = [f"go to the {name} corner" for name in GOALS]
POINT = Embodiment(action_dim=2, proprio_dim=4, cameras=("top",), rate_hz=10, gripper=None)


@dataclass(frozen=True)
class ReachConfig:
    stride: float = 0.1
    """How far a full action moves the point."""


class ReachEnv:
    embodiment, budget = POINT, 30

    def __init__(self, task, config):
        self.instruction, self.goal, self.config = TASKS[task], np.array(list(GOALS.values())[task]), config

    def reset(self, init, seed=0):
        random = np.random.default_rng([seed, init.index, init.kind == "stored"])
        self.at, self.moved = random.uniform(-0.3, 0.3, 2), np.zeros(2)

    def step(self, action):
        self.moved = self.config.stride * action
        self.at = np.clip(self.at + self.moved, -1, 1)

    def observe(self, images):
        image = np.zeros((32, 32, 3), np.uint8)
        for (x, y), colour in ((self.goal, (0, 255, 0)), (self.at, (255, 255, 255))):
            row, column = int(15 - 14 * y), int(15 + 14 * x)
            image[row : row + 3, column : column + 3] = colour
        proprio = np.concatenate([self.at, self.moved]).astype(np.float32)
        return Observation(self.instruction, proprio, {"top": image} if images else {})

    def success(self):
        return bool(np.linalg.norm(self.at - self.goal) < 0.1)

    def close(self):
        pass


SUITES["reach"] = Suite(ReachConfig, POINT, ReachEnv.budget, lambda: TASKS, lambda task: 10, ReachEnv, range(8, 10))
