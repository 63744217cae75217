"""The page of an audit: verdict, noise by phase and task, how it spreads over episodes, and the worst episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError, location, read_record
from vlaad_ray.report import charts, page
from vlaad_ray.report.charts import Frame, Series
from vlaad_ray.semantics import phases, smoothness
from vlaad_ray.summaries import AuditSummary, EpisodeNoise, Noise

BINS = (0.0, 0.002, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)
"""Edges of the histogram of episodes by their share of self-revoked targets."""
WIDTH, LEFT, RIGHT = 1040.0, 76.0, 1030.0


def sections(out: Location) -> list[str]:
    """From OUT/summary.json and OUT/episodes.json, as jobs/audit.py wrote them."""
    summary = store.read_summary(out, AuditSummary)
    if summary is None:
        raise UserError(f"{out} holds no summary.json; make it with jobs/audit.py")
    written = out / "episodes.json"
    again = "rerun jobs/audit.py"
    episodes = [read_record(EpisodeNoise, line, str(written), again) for line in store.read_json(written)]
    counted = summary.episodes
    head = f"<h1>Noise in {escape(summary.source)}</h1>"
    head += "".join(f'<p class="headline">{escape(line)}</p>' for line in summary.verdict)
    head += (
        f"<p class='soft'>{counted.audited} episodes ({counted.failed} failed), {summary.frames:,} frames; "
        f"a gripper command taken back within {summary.longest} steps counts as self-revoking</p>"
    )
    source = "`summary.json` and `episodes.json`, by `jobs/audit.py`"
    by_phase = page.bars(
        {name: 100 * noise.self_revoked for name, noise in summary.phases.items()},
        "% self-revoking",
        charts.PHASE_COLOURS,
    )
    rows: dict[str, Noise] = {"all": summary, **summary.suites, **summary.phases}
    by_task = {f"{name}: {noise.instruction}": noise for name, noise in summary.tasks.items()}
    parts = [
        head,
        page.section("By phase", source, by_phase + _table(rows)),
        page.section("By task", source, _table(by_task)),
        page.section("Episodes by their share of self-revoking targets", source, histogram(episodes)),
    ]
    if summary.stated_phases:
        parts.insert(2, page.section("By the phase that the teacher states", source, _table(summary.stated_phases)))
    worst = max(episodes, key=lambda line: line.self_revoked)
    if worst.self_revoked > 0:
        drawn = f'<div class="wide">{gripper(location(worst.path), summary.longest)}</div>'
        said = f"<p>{escape(worst.episode)}: {100 * worst.self_revoked:.1f} % self-revoking, as dots</p>"
        parts.append(page.section("The worst episode", "the episode's file", said + drawn))
    return parts


def histogram(episodes: Sequence[EpisodeNoise]) -> str:
    """A bar for each range of shares: how many episodes lie in it."""
    counts, _ = np.histogram([line.self_revoked for line in episodes], BINS)
    names = [f"{100 * low:g}-{100 * high:g} %" for low, high in pairwise(BINS)]
    return page.bars(dict(zip(names, counts.astype(float).tolist(), strict=True)), "episodes")


def gripper(path: Location, longest: int) -> str:
    """SVG: phases by the rules, gripper target with its self-revoked steps as dots, and finger width."""
    episode = store.read_episode(path, images=False)
    body = episode.embodiment
    assert body.gripper is not None  # of an episode with self-revoking targets
    target = episode.actions[:, body.gripper]
    revoked = smoothness.self_revoked(target, longest)
    meant = smoothness.meant_gripper(target, longest)
    steps = (0.0, float(len(episode)))
    band = Frame(LEFT, RIGHT, 0, 22, steps, (0.0, 1.0))
    parts, curves = [], {"target": target}
    if body.libero_arm:
        parts = [charts.text(LEFT - 6, 15, "rules", "end")]
        parts += charts.phase_band(band, phases.classify(episode.proprio, meant, episode.instruction))
        curves["width (mm)"] = 1000 * np.abs(episode.proprio[:, 6:8]).sum(axis=1)
    times = [float(step) for step in range(len(episode))]
    top = 34.0
    for label, values in curves.items():
        at = charts.covering_ticks(float(values.min()), float(values.max()))
        frame = Frame(LEFT, RIGHT, top, top + 74, steps, (at[0], at[-1]))
        parts += charts.y_axis(frame, at[:: max(1, len(at) // 3)], label)
        parts.append(charts.polyline(frame, times, Series(label, values.tolist(), "currentColor")))
        if label == "target":
            parts += [
                f'<circle cx="{frame.x(int(step)):.1f}" cy="{frame.y(target[step]):.1f}" r="3" '
                f'fill="{charts.SERIES_COLOURS[1]}"><title>step {step}</title></circle>'
                for step in np.flatnonzero(revoked)
            ]
        top += 90
    parts += charts.x_axis(frame, charts.whole_ticks(*steps), "control step")
    return charts.svg(WIDTH, top + 26, parts, f"Gripper of {episode.key.name}")


def _table(rows: Mapping[str, Noise]) -> str:
    header = ["", "frames", "self-revoking %", "reversals / 240", "stalled %", "asked jerk", "moved jerk, m/s³"]
    cells = [
        [
            escape(name),
            f"{noise.frames:,}",
            f"{100 * noise.self_revoked:.2f}",
            f"{noise.reversals_per_240:.1f}",
            f"{100 * noise.stalled:.1f}",
            *(f"{jerk:.3g}" if jerk is not None else "" for jerk in (noise.asked_jerk, noise.moved_jerk)),
        ]
        for name, noise in rows.items()
    ]
    return page.table(header, cells)
