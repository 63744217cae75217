"""What a policy server has done, counted; and the counts as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""
BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds: upper bounds of the histogram of answers. A control step is 0.05."""


@dataclass
class Counts:
    """What a server has done since it started."""

    answered: int = 0
    refused: int = 0
    """Messages that were no request."""
    failed: int = 0
    """Requests over which the policy failed, or to which it gave something that is no action."""
    seconds: float = 0.0
    """That answers took, the wait for a batch included: their sum."""
    by_bound: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Answers that took no longer than each of BOUNDS, and longer than the one before it; last, all slower ones."""

    def answer(self, seconds: float) -> None:
        """One more request was answered, in so many seconds."""
        self.answered += 1
        self.seconds += seconds
        self.by_bound[bisect_left(BOUNDS, seconds)] += 1


def exposition(counts: Counts, batches: int, waiting: int, clients: int, replica: str = "") -> str:
    """The counts in Prometheus' text format. `replica`: a label that tells several behind one address apart."""
    label = f'replica="{replica}"' if replica else ""
    tag = f"{{{label}}}" if label else ""
    lines = []
    totals = {"answered": counts.answered, "refused": counts.refused, "failed": counts.failed, "batches": batches}
    for name, value in totals.items():
        lines += [f"# TYPE vlaad_{name}_total counter", f"vlaad_{name}_total{tag} {value}"]
    for name, value in (("waiting", waiting), ("clients", clients)):
        lines += [f"# TYPE vlaad_{name} gauge", f"vlaad_{name}{tag} {value}"]
    lines.append("# TYPE vlaad_answer_seconds histogram")
    for bound, number in zip((*BOUNDS, "+Inf"), accumulate(counts.by_bound), strict=True):
        labels = ",".join(filter(None, (label, f'le="{bound}"')))
        lines.append(f"vlaad_answer_seconds_bucket{{{labels}}} {number}")
    lines += [f"vlaad_answer_seconds_sum{tag} {counts.seconds}", f"vlaad_answer_seconds_count{tag} {counts.answered}"]
    return "\n".join(lines) + "\n"
