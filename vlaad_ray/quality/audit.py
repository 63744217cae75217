"""How noisy a dataset's targets are, by phase, task and suite; what to filter; and a repaired copy, when asked for.

One function measures one episode file (`audit_episode`); Ray Data maps it over all. The formulas are in `smoothness`.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import ray.data
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import AuditConfig, Location, UserError
from vlaad_ray.runtime import cluster, record
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.semantics import phases, smoothness
from vlaad_ray.stats import ratio_interval
from vlaad_ray.types import Episode

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

Counts = Counter[str]
"""Sums over frames: frames, revoked, reversals, meant_reversals, stalled; of each jerk its squares, and how many."""


def audit(config: AuditConfig, paths: Sequence[Location]) -> dict[str, Any]:
    """Measure the episode files at `paths`; return (and write) what summary.json holds (docs/noise.md).

    Unreadable files are counted and named in the summary. Raises UserError when no file can be read.
    """
    began = time.monotonic()
    record.begin(config.out, config, {"--data": config.data})
    check_places(config, paths)
    record.write_run_record(config.out, config)
    cluster.connect()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # warns of its progress bars being off
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours instead of one an operator
    work = functools.partial(audit_episode, longest=config.longest, repair=config.repair)
    records = over_episodes(paths, work, "auditing")
    records.sort(key=lambda record: record["path"])
    if all("error" in record for record in records):
        raise UserError(f"none of the {len(records)} episode files can be read; the first: {records[0]['error']}")
    summary = summarise(records, config)
    summary["seconds"] = round(time.monotonic() - began, 2)
    store.write_json(config.out / "episodes.json", [episode_line(record) for record in _good(records)])
    store.write_json(config.out / "summary.json", summary)
    if config.repair is not None:
        record.write_run_record(config.repair, config)
        store.write_json(config.repair / "summary.json", {**summary["repair"], **record.software()})
    return summary


def check_places(config: AuditConfig, paths: Sequence[Location]) -> None:
    """Raises UserError if the repaired copy would land in the dataset itself or mix with other episodes."""
    if config.repair is None:
        return
    for dataset in {path.resolve().parents[1] for path in paths}:
        reads = {"the dataset": dataset, "--out": config.out}
        record.check_place("--repair", config.repair, "AuditConfig", reads, beside=("episodes/[!.]*.parquet",))
    if (config.repair / "episodes").is_dir():
        foreign = {path.name for path in store.list_episodes(config.repair)} - {path.name for path in paths}
        if foreign:
            raise UserError(
                f"--repair {config.repair} already holds {len(foreign)} episodes that are not in the dataset "
                f"(first: {min(foreign)}); choose another directory"
            )


def audit_episode(
    path: Location, episode: Episode, footer: dict[str, Any], longest: int, repair: Location | None
) -> dict[str, Any]:
    """An episode's counts; with `repair`, its repaired copy is stored there."""
    record: dict[str, Any] = {
        "path": str(path),
        "episode": episode.key.name,
        "suite": episode.key.suite,
        "task": episode.key.task,
        "instruction": episode.instruction,
        "success_final": episode.success_final,
        "injected": footer.get("teacher_noise", {}).get("flip_rate"),
        **measure(episode, longest),
    }
    if repair is not None:
        record["repair"] = write_repaired(path, repair, episode, footer, longest)
    return record


def measure(episode: Episode, longest: int) -> dict[str, Any]:
    """Counts over the episode, by the rules' phase and by the teacher's own, and lengths of the revoked bursts."""
    gripper = episode.actions[:, 6]
    revoked = smoothness.self_revoked(gripper, longest)
    meant = smoothness.meant_gripper(gripper, longest)
    columns = {
        "frames": np.ones(len(episode)),
        "revoked": revoked,
        "reversals": smoothness.reversals(gripper),
        "meant_reversals": smoothness.reversals(meant),
        "stalled": smoothness.stalled(episode.actions),
    }
    jerks = {
        "asked": smoothness.asked_jerk(episode.actions),
        "moved": smoothness.moved_jerk(episode.proprio),
    }
    for name, jerk in jerks.items():
        columns[f"{name}_squares"] = np.nan_to_num(jerk) ** 2
        columns[f"{name}_known"] = ~np.isnan(jerk)

    def by_label(labels: Sequence[str | None]) -> dict[str, Counts]:
        return {
            label: Counter({name: float(column[at].sum()) for name, column in columns.items()})
            for label in phases.PHASES
            if (at := np.array([each == label for each in labels], bool)).any()
        }

    starts = np.flatnonzero(np.diff(revoked.astype(int), prepend=0) == 1)
    stops = np.flatnonzero(np.diff(revoked.astype(int), append=0) == -1) + 1
    return {
        "total": Counter({name: float(column.sum()) for name, column in columns.items()}),
        # From what was meant: a flip must not cut a phase in two.
        "rules": by_label(phases.classify(episode.proprio, meant, episode.instruction)),
        "stated": by_label(episode.phases),
        "bursts": Counter(str(length) for length in stops - starts),
    }


def write_repaired(
    path: Location, repair: Location, episode: Episode, footer: dict[str, Any], longest: int
) -> dict[str, int]:
    """Store the episode with the gripper that was meant; say how much that changed, in steps and in the rules' phases.

    The executed actions stay what they were, and so do images.
    """
    repaired = episode.actions.copy()
    repaired[:, 6] = smoothness.meant_gripper(repaired[:, 6], longest)
    before, after = (
        phases.classify(episode.proprio, actions[:, 6], episode.instruction) for actions in (episode.actions, repaired)
    )
    changed = int((repaired[:, 6] != episode.actions[:, 6]).sum())
    note = {"from": footer["content_hash"], "gripper_steps": changed, "longest": longest}
    store.copy_with_actions(path, repair, repaired, {"repaired": note})
    return {"steps": changed, "phase_frames": sum(a != b for a, b in zip(before, after, strict=True))}


def summarise(records: Sequence[dict[str, Any]], config: AuditConfig) -> dict[str, Any]:
    """The audit's summary.json, verdict included."""
    good = _good(records)
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
    if rate < CLEAN:
        said.append(f"{100 * rate:.2f} % of gripper targets are self-revoking: clean, nothing to repair.")
    else:
        where, most = max(summary["phases"].items(), key=lambda item: item[1]["share"])
        said.append(
            f"{100 * rate:.1f} % of gripper targets are self-revoking, {100 * most['share']:.0f} % of them in {where}: "
            f"{summary['reversals_per_240']:.1f} reversals per {WINDOW} steps, "
            f"{summary['reversals_per_240_if_repaired']:.1f} without them."
        )
        said.append(what_to_filter(episodes))
    moving = [entry for phase, entry in summary["phases"].items() if phase not in WAITING]
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


def _good(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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
