"""What the package knows of environments: a suite is a number of tasks on one robot, an Env runs one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vlaad_ray.configs import UserError
from vlaad_ray.types import Embodiment, InitState, Observation, Trained


class SimulatorError(RuntimeError):
    """The simulation has become unusable (numbers diverged). The episode says nothing about the policy."""


class Env(Protocol):
    """One task. It lives in one process and runs one episode after another."""

    instruction: str
    embodiment: Embodiment
    budget: int
    """Control steps in which the goal must be reached, unless the user says otherwise: the suite's."""

    def reset(self, init: InitState, seed: int = 0) -> None:
        """Start an episode, the same to the last bit whatever ran before. `seed` is that of fresh placements."""

    def step(self, action: np.ndarray) -> None:
        """Execute one [A] action in [-1, 1] for one control step. Raises SimulatorError when numbers diverge.

        With a gripper, an action of zeros elsewhere must keep the robot where it is: so it is told to let go.
        """

    def observe(self, images: bool) -> Observation:
        """What is seen before the next action: [P] float32, and an image of every camera if asked for."""

    def success(self) -> bool:
        """Whether the task's goal holds now."""

    def close(self) -> None: ...


class MakeEnv(Protocol):
    """A function of a module (or a partial of one), since Ray's workers import it."""

    def __call__(self, task: int, config: Any) -> Env: ...


def no_parents_task(task: int) -> int | None:
    """Of a suite that is no variant."""
    return None


def nothing_missing(task: int) -> str | None:
    """Of a suite whose tasks can all be run wherever it is installed."""
    return None


def images_unknown(config: Any) -> Trained:
    """Of a suite whose images have neither modes nor sizes that a policy could miss."""
    return Trained()


@dataclass(frozen=True)
class Suite:
    config: type[Any]
    """Dataclass of the environment's own flags, each with a default. All of them join an episode's hash."""
    embodiment: Embodiment
    budget: int
    """Control steps in which a task's goal must be reached, unless the user says otherwise."""
    tasks: Callable[[], Sequence[str]]
    """The instructions of its tasks, by number."""
    init_states: Callable[[int], int]
    """Task -> number of its stored init states."""
    make: MakeEnv
    """The environment of a task, in the process that will use it."""
    held_out: range = range(0)
    """Stored init states kept for evaluation. Collection refuses them unless told otherwise."""
    images: Callable[[Any], Trained] = images_unknown
    """Config -> what its images are like, to be compared with those that a policy learnt from."""
    missing: Callable[[int], str | None] = nothing_missing
    """Task -> what it needs and is not installed, in words; None: it can be run."""
    variant_of: str | None = None
    """The suite that this one perturbs; it is called after that one, as `libero_goal_swap`."""
    parents_task: Callable[[int], int | None] = no_parents_task
    """Task -> that one's task which it repeats under another condition; None: it is a new one."""
    metrics: tuple[str, ...] = ()
    """What evaluation says of an episode beside its success, by name."""


def check_starts(name: str, suite: Suite, tasks: Sequence[int], states: Sequence[int]) -> None:
    """Raises UserError for a task that the suite called `name` lacks or that cannot be run, or a stored init state that
    one of them lacks.
    """
    count = len(suite.tasks())
    for task in tasks:
        if not 0 <= task < count:
            raise UserError(f"{name} has no task {task}; choose from 0-{count - 1}")
        if (missing := suite.missing(task)) is not None:
            raise UserError(f"{name} task {task} cannot be run here: {missing}; choose another suite or task")
        stored = suite.init_states(task)
        if states and max(states) >= stored:
            there = f"choose from 0-{stored - 1}" if stored else "it has none: use placements"
            raise UserError(f"init state {max(states)} of {name} task {task} does not exist; {there}")
