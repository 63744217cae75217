"""What annotating says of its work, and where a VLM did it, what the audit says of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlaad_ray.configs import absent
from vlaad_ray.summaries.rates import Success


@dataclass(frozen=True)
class AnnotatedCounts:
    """Episodes whose labels were written, were there already, or could not be made."""

    annotated: int
    skipped: int
    corrupt: int


@dataclass(frozen=True)
class Flicker:
    """How often labels change: a segment is a run of one phase."""

    segments_per_240_frames: float
    short_segments: int
    """Too short to be a phase of anything."""


@dataclass(frozen=True)
class Agreed:
    """Frames in which the teacher states its phase, and how many of them are labelled alike; None without any."""

    frames: int
    rate: float | None


@dataclass(frozen=True)
class PhaseAgreement(Agreed):
    """Over all episodes, and apart."""

    suites: Mapping[str, Agreed]
    confusion: Mapping[str, Mapping[str, int]]
    """Phase that the teacher states -> label -> frames."""


@dataclass(frozen=True, kw_only=True)
class AnnotateSummary:
    """An annotation's summary.json."""

    annotator: str
    taxonomy: int
    """How many phases it knows."""
    episodes: AnnotatedCounts
    frames: int
    frames_per_phase: Mapping[str, int]
    segments: int
    segments_per_phase: Mapping[str, int]
    transitions: Mapping[str, int]
    """`phase > phase` -> how often the one follows the other."""
    stability: Flicker
    agreement: PhaseAgreement
    errors: tuple[str, ...]
    """One line a corrupt file."""
    seconds: float = 0.0
    """The last run's."""


@dataclass(frozen=True)
class Judged:
    """Answers of a VLM by the audit's verdict."""

    agree: int
    contradict: int
    undecidable: int
    agreement: float | None
    """Of the decided ones; None without any."""
    wilson95: tuple[float, float] | None

    @property
    def success(self) -> Success | None:
        """The agreement as a rate with its interval."""
        if self.agreement is None or self.wilson95 is None:
            return None
        return Success(self.agree + self.contradict, self.agree, self.agreement, self.wilson95)


@dataclass(frozen=True)
class Steadiness:
    """Windows beside each other in an episode."""

    neighbours: int
    """Pairs of which a direction is said."""
    as_steady_as_kinematics: int
    """Pairs in which the direction said turns just when the hand does."""


@dataclass(frozen=True)
class AnswersAudit(Judged):
    """Of all answers, and by what they are about: name -> verdicts."""

    parts: Mapping[str, Judged]
    direction_by_axis: Mapping[str, Judged]
    phases: Mapping[str, Judged]
    suites: Mapping[str, Judged]
    tasks: Mapping[str, Judged]
    """`suite/task`."""
    stability: Steadiness


@dataclass(frozen=True)
class Faults:
    """What asking had to get over."""

    corrupt_images: int
    asked_again: int
    engine_failures: int


@dataclass(frozen=True)
class Decisions:
    """A person's, on the contact sheet."""

    accepted: int = 0
    rejected: int = 0
    unknown: int = 0
    """Of requests that are not there any more."""


@dataclass(frozen=True)
class Tokens:
    """Of the last run's calls."""

    prompt: int
    generated: int


@dataclass(frozen=True)
class VlmSeconds:
    """The last run's, by what they went into."""

    plan: float
    ask: float
    audit: float


@dataclass(frozen=True)
class Forecast:
    """What a whole suite would take at the rate of this run."""

    frames: int
    vlm_calls: int
    hours: float
    gpu_hours: float | None
    """None: a server's are not known."""
    paper_usd: float
    """What the paper paid for one."""


@dataclass(frozen=True, kw_only=True)
class VlmSummary(AnnotateSummary):
    """Where a VLM annotated, there is more to say."""

    model: str
    """Name and revision."""
    prompts: str = ""
    """Their hash."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """annotate.engines.Engine, or `server`."""
    questions: int
    vlm_calls: int
    """Of the last run; answers that were there are not asked for again."""
    valid: int
    """Usable answers."""
    flagged: Mapping[str, int]
    """What was wrong with an answer -> questions."""
    first_words: Mapping[str, str] = field(default_factory=dict)
    """What made answers useless -> how one of them begins."""
    faults: Faults
    decisions: Decisions = Decisions()
    audit: AnswersAudit
    tokens: Tokens
    seconds_by_stage: VlmSeconds
    frames_per_second: float | None = None
    """None, as the forecast, where nothing was asked."""
    gpu_seconds: float | None = None
    """Of all GPUs reserved, from the start of the engine on; None: a server's are not known."""
    forecast: Forecast | None = None
    failure: str | None = absent()
    """In words, when not one answer was usable."""
