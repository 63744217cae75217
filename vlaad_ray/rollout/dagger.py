"""DAgger: a student acts, and what its teacher says is recorded (Ross et al. 2011), from states that it really reaches.

A teacher that reacts to what it sees is asked at every answer, and either's is executed. One that plans from where it
finds the simulator, as the scripted one, takes over for good instead, and what it does from there on is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vlaad_ray.configs import DaggerConfig
from vlaad_ray.deploy.actuation import moved
from vlaad_ray.envs import Env
from vlaad_ray.rollout.noise import random_of
from vlaad_ray.types import ActionChunk, Observation, Policy


class Guided:
    """A teacher and a student in one environment, as one policy; `begin` comes before every `reset`."""

    def __init__(self, teacher: Policy, student: Policy, mix: float | None, latest: int, rest_steps: int):
        """`latest`: the step by which a teacher that is not mixed takes over, or after so many at rest (0: no rest)."""
        self._teacher, self._student, self._mix = teacher, student, mix
        self._latest, self._rest_steps = latest, rest_steps
        self._instruction = ""
        self.needs_images = self._either = teacher.needs_images or student.needs_images

    def begin(self, episode: str) -> None:
        """All that is left to chance in an episode comes from its name."""
        self._random = random_of(f"{episode} dagger")
        self._takeover = int(self._random.integers(1, self._latest + 1))

    def reset(self, instruction: str) -> None:
        self._instruction, self._teaching, self._steps = instruction, False, 0
        self.needs_images = self._either
        self._from: np.ndarray | None = None
        self._rested = 0
        self._student.reset(instruction)
        if self._mix is not None:
            self._teacher.reset(instruction)

    def infer(self, observation: Observation) -> ActionChunk:
        if self._mix is not None:
            return self._mixed(observation, self._mix)
        if not self._teaching and self._is_due(observation):
            self._teaching, self.needs_images = True, self._teacher.needs_images
            self._teacher.reset(self._instruction)
        if self._teaching:
            return self._teacher.infer(observation)
        answer = self._student.infer(observation).first(self._takeover - self._steps)
        self._steps += len(answer.actions)
        self._rested += len(answer.actions)
        return replace(answer, phase=None, taught=False)

    def _mixed(self, observation: Observation, mix: float) -> ActionChunk:
        """The student's or the teacher's actions, as many as both have, and the teacher's as targets."""
        said, done = self._teacher.infer(observation), self._student.infer(observation)
        count = min(len(said.actions), len(done.actions))
        if self._random.random() >= mix:
            return said.first(count)
        return replace(done.first(count), phase=said.phase, targets=said.actions[:count])

    def _is_due(self, observation: Observation) -> bool:
        if not self._rest_steps:
            return self._steps >= self._takeover
        if self._from is None or moved(self._from, observation.proprio):
            self._from, self._rested = observation.proprio.copy(), 0
        return self._steps >= self._takeover or self._rested >= self._rest_steps


def guided(
    teacher: Callable[[Any], Policy], student: Callable[[Any], Policy], config: DaggerConfig, budget: int, env: Env
) -> Policy:
    """In an environment's process: both policies, as one. `budget` 0: the suite's own."""
    latest = config.takeover_within or (budget or env.budget) // 2
    # Rest is told by an arm's hand and fingers.
    rest_steps = config.rest_steps if env.embodiment.libero_arm else 0
    return Guided(teacher(env), student(env), config.mix, latest, rest_steps)
