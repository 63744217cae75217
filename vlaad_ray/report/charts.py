"""Charts as inline SVG: they need no library, scale with the page and follow its light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vlaad_ray.summaries import Success

PHASE_COLOURS = {
    # The nine, at least 20 CIE Lab units apart for normal sight, deuteranopia, protanopia and tritanopia alike.
    "idle": "#c6c4c4",
    "approaching": "#8f9cff",
    "grasping": "#f79433",
    "transporting": "#1a48e0",
    "holding": "#8d35b0",
    "placing": "#159bb0",
    "operating": "#bb3008",
    "regrasping": "#8e2a55",
    "completed": "#84935a",
    # Labels of the other taxonomies: near the phase they refine or contain. Bands and legends name them as well.
    "reaching": "#8f9cff",
    "aligning": "#3d4a6b",
    "lifting": "#f0d878",
    "lowering": "#159bb0",
    "releasing": "#7fd6dc",
    "retreating": "#55603a",
    "resting": "#c6c4c4",
    "carrying": "#1a48e0",
    "manipulating": "#f79433",
}
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8a8a")
"""Okabe and Ito's palette, without yellow and black, which vanish on a light or a dark page."""


@dataclass(frozen=True)
class Series:
    label: str
    values: Sequence[float | None]
    """One for each x of the chart; None leaves a gap."""
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """A rectangle of the drawing and the data range that it shows, both as (from, to)."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        return _scale(value, self.x_range, (self.left, self.right))

    def y(self, value: float) -> float:
        return _scale(value, self.y_range, (self.bottom, self.top))


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, content: str, anchor: str = "start", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(content)}</text>'


def rectangle(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str = "grid") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A line with a head at (x2, y2); where there is no length to speak of, a dot."""
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 2:
        return f'<circle cx="{x2:.1f}" cy="{y2:.1f}" r="3" class="{css}"/>'
    along, head = ((x2 - x1) / length, (y2 - y1) / length), min(8.0, length)
    left, right = (
        f"{x2 - head * (along[0] + side * along[1]):.1f},{y2 - head * (along[1] - side * along[0]):.1f}"
        for side in (0.45, -0.45)
    )
    head_shape = f'<polygon points="{x2:.1f},{y2:.1f} {left} {right}" class="{css}"/>'
    return line(x1, y1, x2 - head * along[0] / 2, y2 - head * along[1] / 2, css) + head_shape


def legend(entries: Mapping[str, str]) -> str:
    """Label -> colour, as a line of text with swatches."""
    items = (f'<span><i style="background:{colour}"></i>{escape(label)}</span>' for label, colour in entries.items())
    return f'<p class="legend">{"".join(items)}</p>'


def line_chart(xs: Sequence[float], series: Sequence[Series], x_label: str, y_label: str, percent: bool = False) -> str:
    """Lines over common xs. With `percent`, values are fractions and the axis reads 0-100 %."""
    width, height = 480.0, 270.0
    known = [value for each in series for value in each.values if value is not None]
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else covering_ticks(0.0, max(known))
    frame = Frame(58, width - 10, 12, height - 42, (min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    parts = y_axis(frame, y_ticks, y_label, percent) + x_axis(frame, whole_ticks(*frame.x_range), x_label)
    parts += [polyline(frame, xs, each) for each in series]
    return svg(width, height, parts, f"{y_label} over {x_label}")


def polyline(frame: Frame, xs: Sequence[float], series: Series) -> str:
    """A line with gaps; a point that stands alone becomes a dot."""
    parts, run = [], list[str]()
    for x, value in [*zip(xs, series.values, strict=True), (0.0, None)]:
        if value is not None:
            run.append(f"{frame.x(x):.1f},{frame.y(value):.1f}")
            continue
        if len(run) == 1:
            cx, cy = run[0].split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{series.colour}"/>')
        elif run:
            dash = ' stroke-dasharray="5 3"' if series.dashed else ""
            parts.append(f'<polyline points="{" ".join(run)}" stroke="{series.colour}"{dash} class="curve"/>')
        run = []
    return f"<g><title>{escape(series.label)}</title>{''.join(parts)}</g>"


def x_axis(frame: Frame, at: Sequence[float], label: str) -> list[str]:
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    parts += [text(frame.x(value), frame.bottom + 16, f"{value:g}", "middle", "tick") for value in at]
    return [*parts, text((frame.left + frame.right) / 2, frame.bottom + 34, label, "middle")]


def y_axis(frame: Frame, at: Sequence[float], label: str, percent: bool = False) -> list[str]:
    parts = []
    for value in at:
        parts.append(line(frame.left, frame.y(value), frame.right, frame.y(value)))
        name = f"{100 * value:.0f} %" if percent else f"{value:g}"
        parts.append(text(frame.left - 6, frame.y(value) + 4, name, "end", "tick"))
    x, y = frame.left - 46, (frame.top + frame.bottom) / 2
    return [
        *parts,
        f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="middle">{escape(label)}</text>',
    ]


def interval(success: Success, css: str) -> str:
    """A success rate as a dot on a 0-100 % line, its 95 % interval as a bar. Same scale in every row of a table."""
    width, height = 170.0, 18.0
    frame = Frame(6, width - 6, 0, height, (0.0, 1.0), (0.0, 1.0))
    rate, (low, high) = success.rate, success.wilson95
    parts = [line(frame.x(share), 2, frame.x(share), height - 2) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts.append(f'<line x1="{frame.x(low):.1f}" y1="9" x2="{frame.x(high):.1f}" y2="9" class="interval {css}"/>')
    parts.append(f'<circle cx="{frame.x(rate):.1f}" cy="9" r="4.5" class="{css}"/>')
    return svg(width, height, parts, f"{100 * rate:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %")


def phase_band(frame: Frame, labels: Sequence[str | None]) -> list[str]:
    """Runs of equal labels as coloured blocks between frame.top and frame.bottom, named where the name fits."""
    parts, start = [], 0
    for stop in range(1, len(labels) + 1):
        if stop < len(labels) and labels[stop] == labels[start]:
            continue
        label = labels[start] or "none"
        left, right = frame.x(start), frame.x(stop)
        colour = PHASE_COLOURS.get(label, "#777777")
        title = f"{label}: steps {start}-{stop - 1}"
        parts.append(rectangle(left, frame.top, right - left - 0.8, frame.bottom - frame.top, colour, title))
        if right - left > 6.6 * len(label) + 6:
            middle = (frame.top + frame.bottom) / 2 + 4
            parts.append(text((left + right) / 2, middle, label, "middle", f"onband {_ink(colour)}"))
        start = stop
    return parts


def covering_ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers from at or below `low` to at or above `high`."""
    step = _round_step(high - low if high > low else abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def whole_ticks(low: float, high: float) -> list[float]:
    """Whole round numbers within [low, high]: epochs, steps."""
    step = max(1, round(_round_step(high - low or 1.0)))
    return [float(value) for value in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]


def _round_step(span: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(span / 5))
    return magnitude * next(factor for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= 6)


def _scale(value: float, source: tuple[float, float], target: tuple[float, float]) -> float:
    span = (source[1] - source[0]) or 1.0
    return target[0] + (value - source[0]) / span * (target[1] - target[0])


def _ink(colour: str) -> str:
    """Class of text that is legible on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "dark" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "light"
