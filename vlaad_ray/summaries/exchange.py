"""What writing a dataset in another format, and making one of another's, say of their work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ExportDatasetSummary:
    """An export's summary.json."""

    format: str
    episodes: int
    frames: int
    tasks: int
    left_out: int
    """Failed episodes that were not asked for."""
    pictures: str
    """How they are stored, in words."""
    written_before: int
    """Of `episodes`, those that an earlier run of the job had written."""
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    git_revision: str | None = None


@dataclass(frozen=True)
class Replayed:
    """A demonstration that was acted out in the simulator."""

    suite: str
    task: int
    number: int
    """In its source."""
    success: bool


@dataclass(frozen=True, kw_only=True)
class ImportDatasetSummary:
    """An import's summary.json."""

    source: str
    episodes: int
    frames: int
    failed: int
    """Episodes that the source calls failures: they are stored, and training leaves them out."""
    success_unknown: int
    """Episodes of which the source does not say it: they are taken for demonstrations, that is for successes."""
    imported_before: int
    """Of `episodes`, those that an earlier run of the job had stored."""
    cameras: tuple[str, ...]
    action_dim: int
    proprio_dim: int
    rate_hz: float
    annotatable: bool
    """The rules can tell phases and directions of this robot."""
    replayed: tuple[Replayed, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    git_revision: str | None = None
