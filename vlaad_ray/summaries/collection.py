"""What collecting says of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
