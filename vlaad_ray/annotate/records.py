"""What is counted of each annotated episode, and the summary and the table over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from vlaad_ray.configs import AnnotateConfig
from vlaad_ray.semantics import phases
from vlaad_ray.summaries import Agreed, AnnotatedCounts, AnnotateSummary, Flicker, PhaseAgreement
from vlaad_ray.types import Annotation, Episode

SHORT_SEGMENT_FRAMES = 5
"""A segment under a quarter of a second is too short to be a phase of anything: the share of them measures flicker."""


def count(episode: Episode, annotation: Annotation, taxonomy: int) -> dict[str, Any]:
    """What the summary needs to know of one episode."""
    runs = _run_lengths(annotation.phases)
    record: dict[str, Any] = {
        "suite": episode.key.suite,
        "frames": Counter(annotation.phases),
        "segments": Counter(label for label, _ in runs),
        "short_segments": sum(length < SHORT_SEGMENT_FRAMES for _, length in runs),
        "transitions": Counter(f"{a} > {b}" for (a, _), (b, _) in pairwise(runs)),
        "confusion": {},
    }
    if all(phase in phases.PHASES for phase in episode.phases):
        stated = phases.relabel(tuple(map(str, episode.phases)), episode.proprio, taxonomy)
        record["confusion"] = Counter(f"{a} > {b}" for a, b in zip(stated, annotation.phases, strict=True))
    return record


def summarise(records: Sequence[dict[str, Any]], config: AnnotateConfig) -> AnnotateSummary:
    """Counts over all episodes, and how far the labels agree with the phases that the teacher states."""
    good = [record for record in records if "error" not in record]
    names = phases.names(config.phases)
    frames = _total(record["frames"] for record in good)
    segments = _total(record["segments"] for record in good)
    suites = sorted({record["suite"] for record in good})
    return AnnotateSummary(
        annotator=config.annotator,
        taxonomy=config.phases,
        episodes=AnnotatedCounts(
            annotated=sum(not record["skipped"] for record in good),
            skipped=sum(record["skipped"] for record in good),
            corrupt=len(records) - len(good),
        ),
        frames=sum(frames.values()),
        frames_per_phase={name: frames[name] for name in names},
        segments=sum(segments.values()),
        segments_per_phase={name: segments[name] for name in names},
        transitions=dict(_total(record["transitions"] for record in good).most_common()),
        stability=Flicker(
            segments_per_240_frames=round(240 * sum(segments.values()) / max(1, sum(frames.values())), 2),
            short_segments=sum(record["short_segments"] for record in good),
        ),
        agreement=PhaseAgreement(
            **vars(_agreed(good)),
            suites={suite: _agreed([record for record in good if record["suite"] == suite]) for suite in suites},
            confusion=_confusion(_total(record["confusion"] for record in good), names),
        ),
        errors=tuple(record["error"] for record in records if "error" in record),
    )


def table(summary: AnnotateSummary) -> Table:
    """Counts a phase, and what the rules call the frames of each phase that the teacher states, in per cent."""
    agreement, names = summary.agreement, list(summary.frames_per_phase)
    title = f"{summary.episodes.annotated} episodes annotated, {summary.episodes.skipped} were already"
    if agreement.rate is not None:
        suites = ", ".join(
            f"{suite} {100 * of.rate:.1f}" for suite, of in agreement.suites.items() if of.rate is not None
        )
        title += f"\nteacher (rows) and rules (columns) agree on {100 * agreement.rate:.1f} % of frames: {suites}"
    matrix = Table("phase", title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("frames", "runs", *(name[:4] for name in names)):
        matrix.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        row = agreement.confusion[name]
        total = sum(row.values())
        shares = [f"{100 * row[other] / total:.0f}" if row[other] else "" for other in names]
        matrix.add_row(name, str(summary.frames_per_phase[name]), str(summary.segments_per_phase[name]), *shares)
    return matrix


def _agreed(records: Iterable[dict[str, Any]]) -> Agreed:
    pairs = _total(record["confusion"] for record in records)
    frames, same = sum(pairs.values()), sum(n for pair, n in pairs.items() if len(set(pair.split(" > "))) == 1)
    return Agreed(frames, round(same / frames, 4) if frames else None)


def _confusion(pairs: Counter[str], names: Sequence[str]) -> dict[str, dict[str, int]]:
    return {a: {b: pairs[f"{a} > {b}"] for b in names} for a in names}


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _run_lengths(labels: Sequence[str]) -> list[tuple[str, int]]:
    numbers = phases.segments(tuple(labels))
    lengths = Counter(numbers.tolist())
    first = {number: label for number, label in reversed(list(zip(numbers.tolist(), labels, strict=True)))}
    return [(first[number], lengths[number]) for number in sorted(lengths)]
