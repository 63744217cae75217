"""What stands between a student's answers and one robot: the same objects in evaluation and in the servers.

A student has no memory, so one copy answers any number of robots, alone or in batches. What must be remembered of one
robot from answer to answer is kept here, by state machines that an observation and the answer to it go through in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vlaad_ray.configs import ActuationConfig, UserError
from vlaad_ray.deploy.actuation import Actuation
from vlaad_ray.deploy.ensemble import TemporalEnsemble
from vlaad_ray.types import LIBERO, ActionChunk, Observation, Policy


class Shaper(Protocol):
    """The state of one robot. Episodes begin with `reset`; `apply` gets every answer, in order."""

    def reset(self) -> None: ...

    def apply(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        """All actions handed out count as executed."""


class FirstActions:
    """Hands out the first actions of each answer; those left are not used."""

    def __init__(self, execute: int | None) -> None:
        self._execute = execute

    def reset(self) -> None:
        """Nothing is remembered."""

    def apply(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        return chunk if self._execute is None else chunk.first(self._execute)


class Shaping:
    """Shapers in turn, of one robot."""

    def __init__(self, shapers: Sequence[Shaper]) -> None:
        self._shapers = shapers

    def reset(self) -> None:
        for shaper in self._shapers:
            shaper.reset()

    def apply(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        for shaper in self._shapers:
            chunk = shaper.apply(observation, chunk)
        return chunk


def shape(
    execute: int | None, ensemble: float | None, actuation: ActuationConfig, gripper: int | None = LIBERO.gripper
) -> Shaping:
    """What every robot that a student drives has of its own, evaluated or served; it takes the student's whole chunks.

    `execute`: actions handed out of each; None: all. `ensemble`: TemporalEnsemble's decay; None: each chunk stands
    alone. `gripper`: its place in an action; a robot without one is told exactly what the student says, as Actuation is
    about grasping. Raises UserError for settings out of range.
    """
    shapers: list[Shaper] = [FirstActions(execute)]
    if ensemble is not None:
        if execute is None:
            raise UserError("--ensemble averages chunks that overlap: give --execute 1, or more, less than all")
        shapers = [TemporalEnsemble(execute, ensemble, gripper)]
    if gripper is not None:
        shapers.append(Actuation(actuation, gripper))
    return Shaping(shapers)


class Shaped:
    """A policy that drives one robot: its answers, shaped."""

    def __init__(self, policy: Policy, shaping: Shaping) -> None:
        self._policy, self._shaping = policy, shaping
        self.needs_images = policy.needs_images

    def reset(self, instruction: str) -> None:
        self._policy.reset(instruction)
        self._shaping.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        """All actions handed out count as executed."""
        return self._shaping.apply(observation, self._policy.infer(observation))
