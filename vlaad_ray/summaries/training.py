"""What training says of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
