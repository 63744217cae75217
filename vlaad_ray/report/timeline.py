"""One episode at a glance: film strip, phases, gripper and hand, and what the annotations say of each segment."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.report import charts, page
from vlaad_ray.report.charts import Frame, Series
from vlaad_ray.types import Annotation, Episode

FILM_FRAMES = 10
MOST_CURVES = 4
WIDTH, LEFT, RIGHT = 1040.0, 76.0, 1030.0
BAND_HEIGHT, CURVE_HEIGHT = 22.0, 74.0


def timeline(run: Location) -> str:
    """The first annotated episode of the run."""
    title = "One episode"
    source = (
        "`data/episodes/*.parquet` and `annotations/annotations/*.parquet`, by `jobs/collect.py` and `jobs/annotate.py`"
    )
    if not (run / "data" / "episodes").is_dir():
        return page.section(title, source, page.not_run("jobs/collect.py"))
    paths = store.list_episodes(run / "data")
    labelled = store.annotated_episodes(run / "annotations")
    annotated = [path for path in paths if path.stem in labelled]
    episode = store.read_episode((annotated or paths)[0])
    annotation = (
        store.read_annotation(store.annotation_path(run / "annotations", episode.key.name)) if annotated else None
    )
    if annotation is not None and len(annotation.phases) != len(episode):
        raise UserError(
            f"{store.annotation_path(run / 'annotations', episode.key.name)} labels {len(annotation.phases)} frames, "
            f"its episode has {len(episode)}; rerun jobs/annotate.py"
        )
    said = (
        f"<p><b>{escape(episode.instruction)}</b> &ensp; <span class='soft'>{escape(episode.key.name)}, "
        f"{len(episode)} steps at {episode.embodiment.rate_hz:g} a second; dotted line: goal first true</span></p>"
    )
    said += f'<div class="wide">{drawing(episode, annotation)}</div>'
    if annotation is None:
        return page.section(title, source, said + page.not_run("jobs/annotate.py"))
    return page.section(title, source, said + _segments(annotation))


def drawing(episode: Episode, annotation: Annotation | None) -> str:
    """SVG with one time axis for all: frames, bands of phases, curves."""
    steps = len(episode)
    x_range = (0.0, float(steps))
    parts: list[str] = []
    top = 0.0
    film = _film(episode, (RIGHT - LEFT) / FILM_FRAMES)
    if film:
        parts += film
        top += (RIGHT - LEFT) / FILM_FRAMES + 6
    bands = {"teacher": episode.phases} if any(episode.phases) else {}
    if annotation is not None:
        bands["rules"] = annotation.phases  # whoever wrote the words
    for name, labels in bands.items():
        frame = Frame(LEFT, RIGHT, top, top + BAND_HEIGHT, x_range, (0.0, 1.0))
        parts.append(charts.text(LEFT - 6, top + BAND_HEIGHT / 2 + 4, name, "end"))
        parts += charts.phase_band(frame, labels)
        top += BAND_HEIGHT + 4
    times = list(range(steps))
    top += 8
    for label, values in curves(episode).items():
        at = charts.covering_ticks(float(values.min()), float(values.max()))
        frame = Frame(LEFT, RIGHT, top, top + CURVE_HEIGHT, x_range, (at[0], at[-1]))
        parts += charts.y_axis(frame, at[:: max(1, len(at) // 3)], label)
        parts.append(charts.polyline(frame, times, Series(label, values.tolist(), "currentColor")))
        if episode.success_step is not None:
            x = frame.x(min(episode.success_step, steps))
            parts.append(charts.line(x, frame.top, x, frame.bottom, "success"))
        top += CURVE_HEIGHT + 16
    parts += charts.x_axis(
        frame, charts.whole_ticks(0, steps), f"control step ({episode.embodiment.rate_hz:g} a second)"
    )
    return charts.svg(WIDTH, top + 26, parts, f"Timeline of {episode.key.name}")


def curves(episode: Episode) -> dict[str, np.ndarray]:
    """Label -> [T]: an arm's fingers and the hand's height; of another robot, the first numbers of proprioception."""
    if episode.embodiment.libero_arm:
        width_mm = 1000 * np.abs(episode.proprio[:, 6:8]).sum(axis=1)
        return {"gripper (mm)": width_mm, "height (m)": episode.proprio[:, 2]}
    return {f"proprio {number}": values for number, values in enumerate(episode.proprio.T[:MOST_CURVES])}


def _film(episode: Episode, size: float) -> list[str]:
    """FILM_FRAMES images of the first camera, each centred over its moment; none if nothing was rendered."""
    camera = next(iter(episode.images), None)
    seen = [step for step, image in enumerate(episode.images.get(camera or "", ())) if image is not None]
    if camera is None or not seen:
        return []
    parts = []
    for i in range(FILM_FRAMES):
        step = min(seen, key=lambda at: abs(at - (i + 0.5) * len(episode) / FILM_FRAMES))
        image = episode.images[camera][step]
        assert image is not None
        data = base64.b64encode(store.encode_jpeg(image)).decode()
        parts.append(
            f'<image x="{LEFT + i * size + 1:.1f}" y="0" width="{size - 2:.1f}" height="{size - 2:.1f}" '
            f'href="data:image/jpeg;base64,{data}"><title>{escape(camera)}, step {step}</title></image>'
        )
    return parts


def _segments(annotation: Annotation) -> str:
    """A row for each segment: when, phase, direction, description."""
    starts = np.flatnonzero(np.diff(annotation.segments, prepend=annotation.segments[0] - 1))
    stops = [*starts[1:], len(annotation.segments)]
    rows = []
    for start, stop in zip(starts, stops, strict=True):
        phase = annotation.phases[start]
        colour = charts.PHASE_COLOURS.get(phase, "#777777")
        swatch = f'<span class="legend"><i style="background:{colour}"></i></span>'
        words = [annotation.directions[start], annotation.descriptions[start]]
        rows.append([f"{start}-{stop - 1}", swatch + escape(phase), *map(escape, words)])
    return page.table(["steps", "phase", "direction", "description"], rows, css="described")
