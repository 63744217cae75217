"""From counts of episodes to an audit's summary: rates by phase, task and suite, and a verdict in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from vlaad_ray.configs import AuditConfig, Location
from vlaad_ray.quality.measure import Counts
from vlaad_ray.semantics import phases
from vlaad_ray.stats import ratio_interval
from vlaad_ray.summaries import AuditedCounts, AuditSummary, EpisodeNoise, Noise, PhaseNoise, RepairCounts, TaskNoise

WINDOW = 240
"""Reversals are given per 240 control steps (12 s), as VLA-AD does."""
CLEAN = 0.002
"""Below this share of self-revoked targets there is nothing to mend."""
FEW = 0.1
"""Leaving out more than this share of the episodes costs more than it mends."""
OUTLIER = 2.0
"""An episode whose asked jerk is over this many times the median episode's is worth a look."""
STALLS = 0.02
"""Share of motionless targets, where the hand should move, from which the verdict speaks of stalls."""
WAITING = ("idle", "grasping", "holding", "placing", "completed")
"""In these phases a hand may well stand still."""


def summarise(records: Sequence[dict[str, Any]], config: AuditConfig) -> AuditSummary:
    """All that the audit has to say, verdict included."""
    good = good_records(records)
    suites = sorted({record["suite"] for record in good})
    tasks = sorted({(record["suite"], record["task"], record["instruction"]) for record in good})
    injected = [record for record in good if record["injected"] is not None]
    summary = AuditSummary(
        **vars(rates(_total(record["total"] for record in good))),
        source=str(config.data) if config.data is not None else f"teacher {config.teacher}",
        longest=config.longest,
        episodes=AuditedCounts(
            audited=len(good),
            failed=sum(not record["success_final"] for record in good),
            corrupt=len(records) - len(good),
        ),
        gripper=any(record["gripper"] for record in good),
        self_revoked_interval95=interval(good),
        injected_flip_rate=_weighted(injected) if injected else None,
        bursts=dict(sorted(_total(record["bursts"] for record in good).items(), key=lambda item: int(item[0]))),
        phases=by_phase(good, "rules"),
        stated_phases=by_phase(good, "stated"),
        suites={suite: rates(_total(r["total"] for r in good if r["suite"] == suite)) for suite in suites},
        tasks={
            f"{suite} {task}": TaskNoise(
                **vars(rates(_total(r["total"] for r in good if (r["suite"], r["task"]) == (suite, task)))),
                instruction=instruction,
            )
            for suite, task, instruction in tasks
        },
        errors=tuple(record["error"] for record in records if "error" in record),
        repair=repaired(good, config.repair) if config.repair is not None else None,
    )
    return replace(summary, verdict=tuple(verdict(summary, [episode_line(record) for record in good])))


def repaired(records: Sequence[dict[str, Any]], out: Location) -> RepairCounts:
    return RepairCounts(
        out=str(out),
        episodes=len(records),
        episodes_changed=sum(record["repair"]["steps"] > 0 for record in records),
        steps_changed=sum(record["repair"]["steps"] for record in records),
        phase_frames_changed=sum(record["repair"]["phase_frames"] for record in records),
    )


def rates(counts: Counts) -> Noise:
    """Sums over frames -> shares, reversals per WINDOW, root-mean-square jerk."""
    frames = counts["frames"]
    asked, moved = (
        math.sqrt(counts[f"{name}_squares"] / known) if (known := counts[f"{name}_known"]) else None
        for name in ("asked", "moved")
    )
    return Noise(
        frames=int(frames),
        self_revoked=counts["revoked"] / frames,
        reversals_per_240=WINDOW * counts["reversals"] / frames,
        reversals_per_240_if_repaired=WINDOW * counts["meant_reversals"] / frames,
        stalled=counts["stalled"] / frames,
        asked_jerk=asked,
        moved_jerk=moved,
    )


def by_phase(records: Sequence[dict[str, Any]], source: str) -> dict[str, PhaseNoise]:
    """Noise in the frames of each phase that occurs."""
    totals = {
        phase: _total(record[source][phase] for record in records if phase in record[source])
        for phase in phases.PHASES
        if any(phase in record[source] for record in records)
    }
    revoked = sum(total["revoked"] for total in totals.values())
    return {
        phase: PhaseNoise(**vars(rates(total)), share=total["revoked"] / revoked if revoked else 0.0)
        for phase, total in totals.items()
    }


def interval(records: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """95 % interval of the share of self-revoked targets, episodes taken as the independent draws; None for one."""
    totals = [record["total"] for record in records]
    found = ratio_interval([total["revoked"] for total in totals], [total["frames"] for total in totals])
    return (found[0], min(1.0, found[1])) if found is not None else None


def episode_line(record: dict[str, Any]) -> EpisodeNoise:
    """One entry of episodes.json."""
    names = ("episode", "path", "suite", "task", "success_final")
    return EpisodeNoise(**{name: record[name] for name in names}, **vars(rates(Counter(record["total"]))))


def verdict(summary: AuditSummary, episodes: Sequence[EpisodeNoise]) -> list[str]:
    """In words: how bad it is, where, and what to do about it."""
    said = []
    rate = summary.self_revoked
    if not summary.gripper:
        said.append("No gripper: its targets are not judged.")
    elif rate < CLEAN:
        said.append(f"{100 * rate:.2f} % of gripper targets are self-revoking: clean, nothing to repair.")
    else:
        where = ""
        if summary.phases:
            phase, most = max(summary.phases.items(), key=lambda item: item[1].share)
            where = f", {100 * most.share:.0f} % of them in {phase}"
        said.append(
            f"{100 * rate:.1f} % of gripper targets are self-revoking{where}: "
            f"{summary.reversals_per_240:.1f} reversals per {WINDOW} steps, "
            f"{summary.reversals_per_240_if_repaired:.1f} without them."
        )
        said.append(what_to_filter(episodes))
    moving: list[Noise] = [noise for phase, noise in summary.phases.items() if phase not in WAITING]
    moving = moving if summary.phases else [summary]
    still = sum(noise.stalled * noise.frames for noise in moving) / max(1, sum(noise.frames for noise in moving))
    if still > STALLS:
        said.append(f"{100 * still:.1f} % of targets ask for no motion where the hand should move: stalls.")
    jerks = {line.episode: line.asked_jerk for line in episodes if line.asked_jerk is not None}
    usual = float(np.median(list(jerks.values()))) if jerks else 0.0
    rough = sorted((name for name in jerks if jerks[name] > OUTLIER * usual), key=lambda name: -jerks[name])
    if rough:
        said.append(
            f"{len(rough)} of {len(jerks)} episodes are over {OUTLIER:g} times as jerky as the median one; "
            f"look at {rough[0]} first."
        )
    if summary.episodes.corrupt:
        said.append(f"{summary.episodes.corrupt} files cannot be read and are not counted: {summary.errors[0]}")
    if (done := summary.repair) is not None:
        said.append(
            f"Repaired copy in {done.out}: {done.steps_changed} gripper targets turned in "
            f"{done.episodes_changed} of {done.episodes} episodes; {done.phase_frames_changed} frames "
            "changed phase."
        )
    return said


def what_to_filter(episodes: Sequence[EpisodeNoise]) -> str:
    """Drop the worst few episodes if that is enough to be clean, else repair."""
    worst_first = sorted(episodes, key=lambda line: -line.self_revoked)
    revoked = sum(line.self_revoked * line.frames for line in worst_first)
    frames = sum(line.frames for line in worst_first)
    few = max(1, int(FEW * len(worst_first)))
    for dropped, line in enumerate(worst_first[:few], start=1):
        revoked -= line.self_revoked * line.frames
        frames -= line.frames
        if dropped < len(worst_first) and revoked < CLEAN * frames:
            return (
                f"Leave out the {dropped} of {len(episodes)} episodes above "
                f"{100 * worst_first[dropped].self_revoked:.1f} %: {100 * revoked / frames:.2f} % remain."
            )
    if frames == 0:
        return "Repair it with --repair OUT: there is no other episode to fall back on."
    return (
        f"Repair it with --repair OUT: the noise is everywhere, leaving out the worst {few} of {len(episodes)} "
        f"episodes would still leave {100 * revoked / frames:.1f} %."
    )


def show(summary: AuditSummary) -> Table:
    """A row for each phase, each suite and all."""
    table = Table(title=f"Noise in {summary.source}", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "frames", "revoked\n%", "reversals\n/ 240", "stalled\n%", "asked\njerk", "moved\nm/s³"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)

    def add(name: str, of: Noise) -> None:
        jerks = [f"{value:.3g}" if value is not None else "" for value in (of.asked_jerk, of.moved_jerk)]
        table.add_row(
            name,
            f"{of.frames:,}",
            f"{100 * of.self_revoked:.2f}",
            f"{of.reversals_per_240:.1f}",
            f"{100 * of.stalled:.1f}",
            *jerks,
        )

    for name, of in [*summary.phases.items(), *summary.suites.items()]:
        add(name, of)
    add("all", summary)
    return table


def good_records(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "error" not in record]


def _weighted(records: Sequence[dict[str, Any]]) -> float:
    """Flip rate that the episodes' settings asked for, by frames."""
    frames = sum(record["total"]["frames"] for record in records)
    return sum(record["injected"] * record["total"]["frames"] for record in records) / frames


def _total(counts: Iterable[dict[str, float]]) -> Counts:
    total: Counts = Counter()
    for each in counts:
        total.update(each)
    return total
