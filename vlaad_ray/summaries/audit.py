"""What an audit of a dataset says of it: how noisy its targets are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlaad_ray.configs import absent


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of the targets in some frames. Shares are fractions."""

    frames: int
    self_revoked: float
    """Share of targets whose gripper command is taken back at once."""
    reversals_per_240: float
    """Of the gripper, in 240 control steps."""
    reversals_per_240_if_repaired: float
    stalled: float
    """Share of targets that ask for no motion."""
    asked_jerk: float | None
    """Root mean square, actions/step^2; None where none is known."""
    moved_jerk: float | None
    """The same of the hand, m/s^3."""


@dataclass(frozen=True, kw_only=True)
class PhaseNoise(Noise):
    """In one phase."""

    share: float
    """Of all self-revoked targets, how many lie in it."""


@dataclass(frozen=True, kw_only=True)
class TaskNoise(Noise):
    """In one task."""

    instruction: str


@dataclass(frozen=True, kw_only=True)
class EpisodeNoise(Noise):
    """One entry of episodes.json."""

    episode: str
    path: str
    suite: str
    task: int
    success_final: bool


@dataclass(frozen=True)
class AuditedCounts:
    """Episodes."""

    audited: int
    failed: int
    """Of these, without success."""
    corrupt: int


@dataclass(frozen=True)
class RepairCounts:
    """What the repaired copy changed."""

    out: str
    episodes: int
    episodes_changed: int
    steps_changed: int
    phase_frames_changed: int


@dataclass(frozen=True, kw_only=True)
class AuditSummary(Noise):
    """An audit's summary.json: noise over all, and apart."""

    source: str
    """The dataset, or the teacher."""
    longest: int
    """Steps within which a gripper command is taken back that counts as self-revoking."""
    episodes: AuditedCounts
    gripper: bool = True
    """There is one in some episode."""
    self_revoked_interval95: tuple[float, float] | None
    """Episodes taken as the independent draws; None for one."""
    injected_flip_rate: float | None
    """What the episodes' footers say was set; None if they don't."""
    bursts: Mapping[str, int]
    """Length, as text, -> how many."""
    phases: Mapping[str, PhaseNoise]
    """By the rules."""
    stated_phases: Mapping[str, PhaseNoise]
    """By the teacher's word."""
    suites: Mapping[str, Noise]
    tasks: Mapping[str, TaskNoise]
    """`suite task`."""
    errors: tuple[str, ...]
    """One line a corrupt file."""
    repair: RepairCounts | None = absent()
    verdict: tuple[str, ...] = ()
    """In words."""
    seconds: float = 0.0
