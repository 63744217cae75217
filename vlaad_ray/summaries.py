"""What stages say of their work: one record a stage, its summary.json.

Other stages, the report, sweeps and studies read them back (store.read_summary). A key that came later has a default,
so that older files are read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlaad_ray.configs import absent


@dataclass(frozen=True)
class EpisodeCounts:
    """What became of the episodes that a collection planned."""

    planned: int
    kept: int
    """The goal outlasts the release."""
    failed: int
    retried: int
    """Times that a simulator died, diverged, got stuck or lost its teacher and was replaced."""
    lost: int
    """Those that had it happen more often than --max-retries allows."""


@dataclass(frozen=True)
class TaskCounts:
    """Episodes of one task that ended."""

    kept: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class CollectSummary:
    """A collection's summary.json."""

    suite: str
    teacher: str
    """--teacher; `policy` is its full name."""
    episodes: EpisodeCounts
    tasks: Mapping[str, TaskCounts]
    """Number of a task, as text, -> its episodes."""
    frames: int
    """Control steps of the episodes kept."""
    taught_frames: int = 0
    """Of these, the teacher's, to be learnt from."""
    without_teacher: int = 0
    """Episodes that a student ended well before its teacher took over."""
    new_steps: int
    """Control steps simulated by the last run of the job."""
    seconds: float
    """That run's, without preparations."""
    steps_per_second: float
    """0 where nothing was left to simulate."""
    lost: tuple[str, ...]
    """Names of the lost episodes."""
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    git_revision: str | None = None
    policy: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitCounts:
    """Episodes trained on, and held out."""

    train: int
    validation: int


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """A training's summary.json."""

    checkpoint: str
    """Where the student is."""
    student: str = "small"
    """Preset; older trainings knew but one."""
    objective: str
    method: Mapping[str, Any] = field(default_factory=dict)
    """The objective's own settings."""
    episodes: SplitCounts
    epochs: int
    steps: int
    train: Mapping[str, Any]
    """The last epoch's metrics by name; the method chooses which."""
    validation: Mapping[str, Any]
    """The same of held-out episodes; empty where there are none."""
    samples_per_second: float
    """Median over the epochs."""
    training_seconds: float
    """In epochs, over all runs that continued this one."""
    seconds: float
    """The last run's, preparations included."""


@dataclass(frozen=True)
class Success:
    """How often it went well: k of n, as a fraction, and its 95 % Wilson interval."""

    n: int
    k: int
    rate: float
    wilson95: tuple[float, float]


@dataclass(frozen=True)
class Successes:
    """Of both kinds."""

    ever: Success
    """The goal was true at some step within the budget."""
    final: Success
    """Still true once the gripper has let go."""


@dataclass(frozen=True)
class TaskSuccesses(Successes):
    """Those of one task."""

    instruction: str = ""


@dataclass(frozen=True)
class Paired:
    """Two policies, a and b, on the trials that both have run."""

    n: int
    both: int
    """Trials in which both succeeded, and so on."""
    only_a: int
    only_b: int
    neither: int
    difference: float
    """Success rate of a minus that of b."""
    mcnemar_p: float
    """Exact and two-sided."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the starts that both have run, for both kinds of success."""

    ever: Paired
    final: Paired
    baseline: str | None = absent()
    """Where b is, if it is an evaluation of its own."""


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """An evaluation's summary.json."""

    policy: str
    checkpoint: str | None = None
    """Of a student."""
    suite: str
    init_states: str
    placements: int = 0
    seed: int = 0
    execute: int | None = None
    """Actions of a chunk that are executed; None: all."""
    gripper_dwell: int | None = None
    """Of a student, as the two below: ActuationConfig."""
    gripper_memory: int | None = None
    nudge_after: int | None = None
    ensemble: float | None = None
    """How a student's overlapping chunks are averaged, if they are."""
    budget: int
    """Control steps."""
    render: str | None = None
    success: Successes
    tasks: Mapping[str, TaskSuccesses]
    """Number of a task, as text, -> its successes."""
    gripper_flips_per_240: float | None = absent()
    """Of robots with a gripper whose suite counts them."""
    gripper_flips_per_episode: float | None = absent()
    steps_mean: float
    retried: int = 0
    """Times that a simulator was replaced, in the last run of the job."""
    seconds: float = 0.0
    """That run's."""
    steps_per_second: float = 0.0
    """0 where nothing was left to simulate."""
    warnings: tuple[str, ...] = ()
    paired: Comparison | None = absent()
    """With the evaluation --compare-to."""
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    git_revision: str | None = None
    episodes: tuple[str, ...]
    """Names of their outcomes; the folder may hold those of other settings, too."""
    videos: tuple[str, ...] = ()
    """Paths from the evaluation's folder."""
