"""What several stages share: the user's errors, ranges, environments, actors, noise."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from vlaad_ray.configs.bounds import FILLED, above, at_least, below, between
from vlaad_ray.configs.errors import UserError
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.names import Later, Newer, named_settings
from vlaad_ray.configs.places import Location

T = TypeVar("T")
TAXONOMIES = (3, 5, 7, 9, 11, 13)
LONGEST_RANGE = 100_000
"""Of tasks, init states or seeds: a slip of the key would fill the memory."""
WAIT_FOR_NODES_S = 900.0
"""Longest wait of any stage for a node that the cluster's autoscaler may bring: new machines pull an image first."""


def parse_range(text: str, flag: str = "range") -> tuple[int, ...]:
    """`0-9`, `0,3,7`, `0-4,8` -> sorted tuple of distinct integers; an empty text is an empty tuple."""
    numbers: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or (dash and int(high) < int(low)):
            raise UserError(f"{flag}: {part!r} is not a range; write it as 0-9, 0,3,7 or 0-4,8")
        if dash and int(high) - int(low) >= LONGEST_RANGE:
            raise UserError(f"{flag}: {part!r} is too long; {LONGEST_RANGE} numbers are the most")
        numbers.update(range(int(low), int(high or low) + 1))
    return tuple(sorted(numbers))


def what_a_checkpoint_is(given: object) -> str:
    """What --checkpoint and --policy take, for the error that `given` is none; more is said where it may be a hub's."""
    takes = "give a directory or URI"
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(given)):
        return f"{takes}; a name on a model hub ({given}) is taken for --backbone and --model alone: download it first"
    return takes


@dataclass(frozen=True)
class NoSettings:
    """Of an entry (teacher, method …) without flags of its own."""


def settings_of(entry: str, wanted: type[T], given: Any) -> T:
    """`given`, if it is what the chosen entry takes; the entry's own defaults where the caller left those of another.

    Raises UserError for another's settings that say something, which would be lost.
    """
    if isinstance(given, wanted):
        return given
    if given != type(given)():
        raise UserError(f"{entry} takes settings of {wanted.__name__}, not {type(given).__name__}: {given}")
    return wanted()


@dataclass(frozen=True)
class EnvConfig:
    """How LIBERO is run and drawn."""

    render: Literal["fast", "exact", "stock"] = "fast"
    """fast: several times quicker, no reflections or antialiasing; for students trained on data collected the same way.
    exact: pixel-identical to LIBERO's own images (published checkpoints need it). stock: LIBERO's own environment,
    which draws at every step, as the field runs it."""
    image_size: Annotated[int, between(8, 4096)] = 128
    """Height and width of both camera images, in pixels."""
    settle_steps: Annotated[int, at_least(0)] = 10
    """No-op steps after a reset, before the policy acts (field protocol)."""


@dataclass(frozen=True)
class FleetConfig:
    """How parallel work is spread over Ray actors. Never changes what an episode contains."""

    actors: Annotated[int, at_least(0)] = 0
    """Simulator processes; 0: as many as the CPUs (and GPUs) of the nodes hold when the stage begins."""
    cpus_per_actor: Annotated[float, above(0)] = 1.0
    gpus_per_actor: Annotated[float, at_least(0)] = 0.0
    """GPUs, or the fraction of one, for each actor: to draw on (EGL), and for a policy."""
    wait_for_nodes_s: Annotated[float, at_least(0)] = WAIT_FOR_NODES_S
    """Longest wait for a node that the autoscaler may bring, when the actors fit none. Without one nothing waits."""
    episode_timeout_s: Annotated[float, above(0)] = 300.0
    """An episode slower than this counts as stuck: its simulator is replaced and the episode retried."""
    max_retries: Annotated[int, at_least(0)] = 2
    """Retries an episode gets after a dead or stuck simulator, before it is given up as lost."""


@dataclass(frozen=True)
class ActuationConfig:
    """From what a student without memory says to what the robot is told. Three zeros: exactly as it says."""

    gripper_dwell: Annotated[int, at_least(0)] = 10
    """Control steps that a student's gripper command stands once it has changed. Fingers take about 10 (0.5 s) to close
    on a thing (docs/experiments.md)."""
    gripper_memory: Annotated[int, at_least(0)] = 10
    """Control steps over which a student's doubts about the gripper's command add up, until the command changes; 0: it
    changes when the student finds that likelier than not."""
    nudge_after: Annotated[Later[int], at_least(0)] = 0
    """Control steps without motion, gripper open, after which a student's translations get noise for a moment, as wide
    as it is unsure; 0: never. 15 helps students that stand still before they grasp; the scripted teacher hardly ever
    rests so long (docs/experiments.md)."""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise on the *executed* action only; the recorded target stays clean, so data covers recovery (DART)."""

    sigmas: Annotated[tuple[float, ...], at_least(0), FILLED] = (0.0,)
    """An episode draws one of these: standard deviation of white noise on each translation (half on rotations)."""
    burst_rate: Annotated[float, between(0, 1)] = 0.0
    """Chance a step that a burst starts: a constant random push over 4-10 steps."""
    burst_sigma: Annotated[float, at_least(0)] = 0.5
    """Standard deviation of a burst's translation push (0.3 of it on rotations)."""
    operating_scale: Annotated[Newer[float], between(0, 1)] = 0.3
    """Share of the noise that is left while the teacher works a drawer, door, knob or plate, where it would slip off.
    Only teachers that say their phase get less."""


@dataclass(frozen=True)
class DaggerConfig:
    """Let a student act and record what its teacher says, from states that the student really reaches (DAgger)."""

    student: Machine[Location | None] = None
    """Checkpoint directory or export of the student that acts first; none: the teacher acts alone."""
    mix: Annotated[Newer[float | None], between(0, 1)] = None
    """Share of answers that are the student's; the teacher is asked at every answer and what it says is recorded. None:
    the student acts until the teacher takes over for good, as a teacher must that plans (scripted)."""
    takeover_within: Annotated[Newer[int], at_least(0)] = 0
    """The teacher takes over at a random step up to this one; 0: half of the step budget."""
    rest_steps: Annotated[Newer[int], at_least(0)] = 25
    """The teacher also takes over when the student's arm has rested for so many steps; 0: not for that."""
    student_device: Newer[Literal["cpu", "cuda"]] = "cpu"
    """Where the student computes: a copy in each simulator's process, or (cuda) --student-replicas on a GPU each."""
    student_replicas: Machine[Annotated[int, at_least(1)]] = 1


@dataclass(frozen=True)
class TeacherNoiseConfig:
    """What real teachers do, injected into what a teacher asks for: the *recorded* target is noisy, and executed."""

    flip_rate: Annotated[float, at_least(0)] = 0.0
    """Expected share of steps whose gripper target is turned, to be taken back within the burst length."""
    flip_steps: Annotated[int, at_least(1)] = 2
    """A burst of flips lasts 1 to this many steps. Above 3, jobs/audit.py needs a --longest to match."""
    jitter: Annotated[float, at_least(0)] = 0.0
    """Standard deviation of white noise on each translation (half on rotations)."""
    stall_rate: Annotated[float, below(1, low=0)] = 0.0
    """Expected share of steps on which the teacher asks for no motion though it meant to move."""
    stall_steps: Annotated[int, at_least(1)] = 5
    """A stall lasts 1 to this many steps."""


def config_hash(**settings: object) -> str:
    """8 hex digits over settings that determine content. Values must be JSON-able or dataclasses (`named_settings`)."""
    text = json.dumps(settings, sort_keys=True, default=named_settings)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
