"""What an evaluation says of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlaad_ray.configs import absent
from vlaad_ray.summaries.rates import Comparison, Successes, TaskSuccesses


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
