"""Records that cross stage borders.

Units and frames, wherever a robot is LIBERO's: metres and radians along its base's axes (x forward, away from the
robot; y to its left; z up), positions from the world's origin, 20 control steps a second. An action is a 7-D OSC_POSE
delta in [-1, 1]: 3 x translation, 3 x axis-angle rotation, gripper (-1 open, +1 closed). Other robots say their sizes
in an Embodiment; in shapes, A is how many numbers an action has and P how many proprioception has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

ACTION_DIM = 7
GRIPPER = ACTION_DIM - 1
"""LIBERO's place of it in an action."""
PROPRIO_DIM = 8
"""Proprioception: end-effector position (3, m), its orientation as axis-angle (3, rad), two finger joints (2, m).

Position and orientation are in world coordinates: the base's axes, but not its place (docs/store.md)."""
CONTROL_HZ = 20
CAMERAS = ("agentview", "wrist")


@dataclass(frozen=True)
class Embodiment:
    """What a robot's policy sees and says: the sizes that data, networks and environments have in common."""

    action_dim: int
    """Numbers in an action, each in [-1, 1]."""
    proprio_dim: int
    """Numbers of proprioception; 0: there is none."""
    cameras: tuple[str, ...]
    rate_hz: float
    """Control steps a second."""
    gripper: int | None
    """Which number of an action opens (-1) or closes (+1) a gripper; None: there is no gripper."""

    @property
    def libero_arm(self) -> bool:
        """An arm as LIBERO's, whatever its cameras: what the units above say of actions and PROPRIO_DIM of the rest."""
        return (self.action_dim, self.proprio_dim, self.rate_hz, self.gripper) == (7, 8, 20, 6)


LIBERO = Embodiment(ACTION_DIM, PROPRIO_DIM, CAMERAS, CONTROL_HZ, GRIPPER)
"""A Franka arm with OSC_POSE control, as every LIBERO suite has it; data without a word on its robot is of this one."""


@dataclass(frozen=True, order=True)
class InitState:
    """Where an episode starts: a stored init state of the task (its index), a fresh random placement (its number), or
    wherever an imported one did (its number in its source): no environment can repeat that.
    """

    kind: Literal["stored", "placement", "imported"]
    index: int

    @property
    def label(self) -> str:
        return f"{self.kind[0]}{self.index:04d}"


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """All that determines an episode, and hence its name."""

    suite: str
    task: int
    init: InitState
    policy: str
    """Name of the teacher, or a name that identifies the checkpoint."""
    seed: int
    config_hash: str
    """Hash of every setting that changes the content (rendering, noise, budget …), never of machines or paths."""

    @property
    def name(self) -> str:
        return f"{self.suite}-t{self.task:02d}-{self.init.label}-{self.policy}-seed{self.seed}-{self.config_hash}"


@dataclass(frozen=True)
class Observation:
    """What a policy may see at one control step."""

    instruction: str
    proprio: np.ndarray
    """[P] float32, see PROPRIO_DIM."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Camera name -> [H, W, 3] uint8, upright. Empty when nobody asked for a rendering."""


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer: the next K actions."""

    actions: np.ndarray
    """[K, A] float32 in [-1, 1]."""
    phase: str | None = None
    """The phase that the policy says it is in (one of phases.PHASES), when it knows."""
    closing: np.ndarray | None = None
    """[K] probability that the gripper is to be closed, of a policy that knows it."""
    spread: np.ndarray | None = None
    """[K, 3] standard deviation of each translation, of a policy that knows how sure it is."""
    taught: bool = True
    """Whether it may be learnt from; not, where a student acts until its teacher takes over."""
    targets: np.ndarray | None = None
    """[K, A] what to learn in place of `actions`, where a teacher is asked and a student acts (DAgger)."""

    def first(self, count: int) -> ActionChunk:
        """The next `count` actions of it; all if there are fewer."""
        shorter = {
            name: values[:count]
            for name in ("actions", "closing", "spread", "targets")
            if (values := getattr(self, name)) is not None
        }
        return replace(self, **shorter)


class Policy(Protocol):
    """Teacher and student alike: one `reset` an episode, then `infer` whenever the last chunk is used up."""

    needs_images: bool

    def reset(self, instruction: str) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk: ...


def _as_it_is(observation: Observation) -> Observation:
    return observation


def _as_they_answer(policy: Policy) -> Policy:
    return policy


class BatchPolicy(Protocol):
    """A policy without memory that answers the observations of many environments at once."""

    needs_images: bool

    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One answer for each observation (as SharedPolicy.prepare left it), in order.

        Whatever else is in the batch must not matter beyond rounding.
        """


@dataclass(frozen=True)
class Trained:
    """What the images were like that a policy learnt from. None and 0: nobody knows, or it does not matter."""

    render: str | None = None
    """The environment's mode of rendering, EnvConfig.render of LIBERO."""
    image_size: int = 0
    """Pixels of each side, EnvConfig.image_size of LIBERO."""

    @property
    def look(self) -> str | None:
        """The mode, under one name where two show the same: LIBERO's own environment (stock) and exact."""
        return "exact" if self.render == "stock" else self.render


@dataclass(frozen=True)
class LocalPolicy:
    """A policy that every environment has for itself, in its own process: scripted, a small student, a client."""

    name: str
    """For names of episodes; tells checkpoints apart."""
    make: Callable[[Any], Policy]
    """Called in the environment's process with the Env in which the policy will act."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What else changes its actions: goes into the episodes' config hash."""
    trained: Trained = Trained()
    plans: bool = False
    """It works off a plan that it makes at `reset`, from wherever the environment is, and so must act itself."""


@dataclass(frozen=True)
class SharedPolicy:
    """A policy too large for that, or for a GPU: replicas of it answer the batched requests of all environments."""

    name: str
    load: Callable[[str], BatchPolicy]
    """Called once in each replica's process with the torch device to use."""
    execute: int | None
    """How many actions of a chunk are handed out; None: all."""
    prepare: Callable[[Observation], Observation] = _as_it_is
    """Called in the environment's process before an observation is sent. Preprocessing belongs here: the environments
    do it side by side, a replica would do it one by one, and what the policy does not look at stays at home."""
    settings: Mapping[str, object] = field(default_factory=dict)
    trained: Trained = Trained()
    wrap: Callable[[Policy], Policy] = _as_they_answer
    """Called in the environment's process with the replica's client: what one environment has of its own goes around
    it."""


@dataclass(frozen=True)
class Episode:
    """A finished rollout of T control steps. Index t holds what was seen *before* action t was executed."""

    key: EpisodeKey
    instruction: str
    proprio: np.ndarray
    """[T, P] float32."""
    actions: np.ndarray
    """[T, A] float32: what the policy asked for (clean, the training target)."""
    executed: np.ndarray
    """[T, A] float32: what the robot was told, noise included."""
    phases: tuple[str | None, ...]
    """[T] the policy's own phase, when it states one."""
    images: Mapping[str, tuple[np.ndarray | None, ...]]
    """Camera -> [T] of [H, W, 3] uint8, None where nothing was rendered."""
    success_step: int | None
    """Number of actions after which the goal was first true ("ever"); None if it never was within the budget."""
    success_final: bool
    """The goal still holds after the gripper has let go and things have settled."""
    budget: int
    """Step budget within which `success_step` had to fall."""
    embodiment: Embodiment = LIBERO
    taught: np.ndarray | None = None
    """[T] bool: `actions` there are a teacher's, to be learnt from; None: all are. Else they are the student's."""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def success_ever(self) -> bool:
        return self.success_step is not None


@dataclass(frozen=True)
class Annotation:
    """What is going on in the T frames of one episode."""

    episode: str
    """EpisodeKey.name."""
    phases: tuple[str, ...]
    """[T] labels of the chosen taxonomy."""
    directions: tuple[str, ...]
    """[T] motion in words ("moving left and down"), one text a segment."""
    descriptions: tuple[str, ...]
    """[T] a short sentence from phase, direction and instruction: the student's extra text input."""
    segments: np.ndarray
    """[T] int32, number of the segment (run of one phase) a frame belongs to, from 0."""
    sources: tuple[str, ...]
    """[T] who said so: "rules", or the VLM's name."""
    flags: tuple[str, ...]
    """[T] why a VLM's answer was not taken as it is; empty where there is nothing to say."""


@dataclass(frozen=True)
class Outcome:
    """How an evaluated episode ended."""

    suite: str
    task: int
    init: str
    """InitState.label."""
    instruction: str
    success_ever: bool
    success_final: bool
    steps: int
    """Until the goal was first true; the budget where it never was."""
    recorded_steps: int
    """All of the episode's, those after success included."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Name -> what the suite's metrics (evaluate.metrics) say of it, as JSON has it."""


@dataclass(frozen=True)
class Collected:
    """How an episode ended that was to join a dataset."""

    suite: str
    task: int
    init: str
    """InitState.label."""
    kept: bool
    """Good enough to learn from."""
    stored: bool
    """Its file was written; failed ones may be, too."""
    success_ever: bool
    success_final: bool
    steps: int
    """Control steps of the whole episode."""
    taught: int = -1
    """Of these, the teacher's, to be learnt from; -1: nobody counted, all."""
