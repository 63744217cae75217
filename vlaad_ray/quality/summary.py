"""From counts of episodes to an audit's summary: rates by phase, task and suite, and a verdict in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from vlaad_ray.configs import AuditConfig
from vlaad_ray.quality.measure import Counts
from vlaad_ray.semantics import phases
from vlaad_ray.stats import ratio_interval

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


def summarise(records: Sequence[dict[str, Any]], config: AuditConfig) -> dict[str, Any]:
    """The audit's summary.json, verdict included."""
    good = good_records(records)
    suites = sorted({record["suite"] for record in good})
    tasks = sorted({(record["suite"], record["task"], record["instruction"]) for record in good})
    injected = [record for record in good if record["injected"] is not None]
    summary = {
        "source": str(config.data) if config.data is not None else f"teacher {config.teacher}",
        "longest": config.longest,
        "episodes": {
            "audited": len(good),
            "failed": sum(not record["success_final"] for record in good),
            "corrupt": len(records) - len(good),
        },
        "gripper": any(record["gripper"] for record in good),
        **rates(_total(record["total"] for record in good)),
        "self_revoked_interval95": interval(good),
        "injected_flip_rate": _weighted(injected) if injected else None,
        "bursts": dict(sorted(_total(record["bursts"] for record in good).items(), key=lambda item: int(item[0]))),
        "phases": by_phase(good, "rules"),
        "stated_phases": by_phase(good, "stated"),
        "suites": {suite: rates(_total(r["total"] for r in good if r["suite"] == suite)) for suite in suites},
        "tasks": {
            f"{suite} {task}": {
                "instruction": instruction,
                **rates(_total(r["total"] for r in good if (r["suite"], r["task"]) == (suite, task))),
            }
            for suite, task, instruction in tasks
        },
        "errors": [record["error"] for record in records if "error" in record],
    }
    if config.repair is not None:
        summary["repair"] = {
            "out": str(config.repair),
            "episodes": len(good),
            "episodes_changed": sum(record["repair"]["steps"] > 0 for record in good),
            "steps_changed": sum(record["repair"]["steps"] for record in good),
            "phase_frames_changed": sum(record["repair"]["phase_frames"] for record in good),
        }
    summary["verdict"] = verdict(summary, [episode_line(record) for record in good])
    return summary


def rates(counts: Counts) -> dict[str, Any]:
    """Sums over frames -> shares, reversals per WINDOW, root-mean-square jerk (asked: actions/step^2; moved: m/s^3)."""
    frames = counts["frames"]
    result: dict[str, Any] = {
        "frames": int(frames),
        "self_revoked": counts["revoked"] / frames,
        "reversals_per_240": WINDOW * counts["reversals"] / frames,
        "reversals_per_240_if_repaired": WINDOW * counts["meant_reversals"] / frames,
        "stalled": counts["stalled"] / frames,
    }
    for name in ("asked", "moved"):
        known = counts[f"{name}_known"]
        result[f"{name}_jerk"] = math.sqrt(counts[f"{name}_squares"] / known) if known else None
    return result


def by_phase(records: Sequence[dict[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """Rates in the frames of each phase that occurs; `share`: of all self-revoked targets, how many lie in it."""
    totals = {
        phase: _total(record[source][phase] for record in records if phase in record[source])
        for phase in phases.PHASES
        if any(phase in record[source] for record in records)
    }
    revoked = sum(total["revoked"] for total in totals.values())
    return {
        phase: {**rates(total), "share": total["revoked"] / revoked if revoked else 0.0}
        for phase, total in totals.items()
    }


def interval(records: Sequence[dict[str, Any]]) -> list[float] | None:
    """95 % interval of the share of self-revoked targets, episodes taken as the independent draws; None for one."""
    totals = [record["total"] for record in records]
    found = ratio_interval([total["revoked"] for total in totals], [total["frames"] for total in totals])
    return [found[0], min(1.0, found[1])] if found is not None else None


def episode_line(record: dict[str, Any]) -> dict[str, Any]:
    """One entry of episodes.json."""
    names = ("episode", "path", "suite", "task", "success_final")
    return {**{name: record[name] for name in names}, **rates(Counter(record["total"]))}


def verdict(summary: dict[str, Any], episodes: Sequence[dict[str, Any]]) -> list[str]:
    """In words: how bad it is, where, and what to do about it."""
    said = []
    rate = summary["self_revoked"]
    if not summary["gripper"]:
        said.append("No gripper: its targets are not judged.")
    elif rate < CLEAN:
        said.append(f"{100 * rate:.2f} % of gripper targets are self-revoking: clean, nothing to repair.")
    else:
        where = ""
        if summary["phases"]:
            phase, most = max(summary["phases"].items(), key=lambda item: item[1]["share"])
            where = f", {100 * most['share']:.0f} % of them in {phase}"
        said.append(
            f"{100 * rate:.1f} % of gripper targets are self-revoking{where}: "
            f"{summary['reversals_per_240']:.1f} reversals per {WINDOW} steps, "
            f"{summary['reversals_per_240_if_repaired']:.1f} without them."
        )
        said.append(what_to_filter(episodes))
    moving = [entry for phase, entry in summary["phases"].items() if phase not in WAITING]
    moving = moving if summary["phases"] else [summary]
    still = sum(entry["stalled"] * entry["frames"] for entry in moving) / max(1, sum(e["frames"] for e in moving))
    if still > STALLS:
        said.append(f"{100 * still:.1f} % of targets ask for no motion where the hand should move: stalls.")
    jerks = {line["episode"]: line["asked_jerk"] for line in episodes if line["asked_jerk"] is not None}
    usual = float(np.median(list(jerks.values()))) if jerks else 0.0
    rough = sorted((name for name in jerks if jerks[name] > OUTLIER * usual), key=lambda name: -jerks[name])
    if rough:
        said.append(
            f"{len(rough)} of {len(jerks)} episodes are over {OUTLIER:g} times as jerky as the median one; "
            f"look at {rough[0]} first."
        )
    if summary["episodes"]["corrupt"]:
        said.append(
            f"{summary['episodes']['corrupt']} files cannot be read and are not counted: {summary['errors'][0]}"
        )
    if "repair" in summary:
        done = summary["repair"]
        said.append(
            f"Repaired copy in {done['out']}: {done['steps_changed']} gripper targets turned in "
            f"{done['episodes_changed']} of {done['episodes']} episodes; {done['phase_frames_changed']} frames "
            "changed phase."
        )
    return said


def what_to_filter(episodes: Sequence[dict[str, Any]]) -> str:
    """Drop the worst few episodes if that is enough to be clean, else repair."""
    worst_first = sorted(episodes, key=lambda line: -line["self_revoked"])
    revoked = sum(line["self_revoked"] * line["frames"] for line in worst_first)
    frames = sum(line["frames"] for line in worst_first)
    few = max(1, int(FEW * len(worst_first)))
    for dropped, line in enumerate(worst_first[:few], start=1):
        revoked -= line["self_revoked"] * line["frames"]
        frames -= line["frames"]
        if dropped < len(worst_first) and revoked < CLEAN * frames:
            return (
                f"Leave out the {dropped} of {len(episodes)} episodes above "
                f"{100 * worst_first[dropped]['self_revoked']:.1f} %: {100 * revoked / frames:.2f} % remain."
            )
    if frames == 0:
        return "Repair it with --repair OUT: there is no other episode to fall back on."
    return (
        f"Repair it with --repair OUT: the noise is everywhere, leaving out the worst {few} of {len(episodes)} "
        f"episodes would still leave {100 * revoked / frames:.1f} %."
    )


def show(summary: dict[str, Any]) -> Table:
    """A row for each phase, each suite and all."""
    table = Table(title=f"Noise in {summary['source']}", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "frames", "revoked\n%", "reversals\n/ 240", "stalled\n%", "asked\njerk", "moved\nm/s³"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)

    def add(name: str, entry: dict[str, Any]) -> None:
        jerks = [f"{value:.3g}" if value is not None else "" for value in (entry["asked_jerk"], entry["moved_jerk"])]
        table.add_row(
            name,
            f"{entry['frames']:,}",
            f"{100 * entry['self_revoked']:.2f}",
            f"{entry['reversals_per_240']:.1f}",
            f"{100 * entry['stalled']:.1f}",
            *jerks,
        )

    for name, entry in [*summary["phases"].items(), *summary["suites"].items()]:
        add(name, entry)
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
