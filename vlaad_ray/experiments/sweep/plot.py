"""Parallel coordinates: a line a trial, an axis for each setting that varied and each thing that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from vlaad_ray import store
from vlaad_ray.configs import Location
from vlaad_ray.experiments.sweep.space import LOGARITHMIC

UNFINISHED = "#bbbbbb"


def parallel_coordinates(summary: Mapping[str, Any], path: Location) -> Location:
    """Draw the trials of a sweep's summary as PNG, coloured by the last axis: what the sweep was after.

    Trials that were stopped early are grey. Axes run from the least value to the greatest, lr and the weights of
    auxiliary losses on a logarithmic scale.
    """
    trials = [trial for trial in summary["trials"] if trial["near"] is not None]
    names = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    axes = {name: [trial["settings"][name] for trial in trials] for name in names}
    axes["held-out accuracy (near)"] = [trial["near"] for trial in trials]
    if summary["goal"] != "accuracy":
        rates = [trial["success"]["rate"] if trial["success"] else None for trial in trials]
        axes["success (tuning)"] = rates
    figure = Figure(figsize=(2.2 + 1.7 * len(axes), 4.2), layout="constrained")
    panel = figure.add_subplot()
    heights = [scaled(values, logarithmic=name in LOGARITHMIC) for name, values in axes.items()]
    for number, trial in enumerate(trials):
        points = [(x, each[number]) for x, each in enumerate(heights) if each[number] is not None]
        finished = trial["state"] == "finished"
        goodness = heights[-1][number]
        colour = colormaps["viridis"](goodness) if finished and goodness is not None else UNFINISHED
        is_best = summary["best"] is not None and trial["name"] == summary["best"]["name"]
        panel.plot(*zip(*points, strict=True), color=colour, linewidth=3 if is_best else 1.2, zorder=2 + finished)
    for x, values in enumerate(axes.values()):
        panel.axvline(x, color="#444444", linewidth=0.8)
        known = sorted({value for value in values if value is not None})
        for value, y in zip(known, scaled(known, logarithmic=list(axes)[x] in LOGARITHMIC), strict=True):
            if len(known) <= 6 or value in (known[0], known[-1]):
                panel.annotate(f"{value:.3g}", (x, y or 0.0), (4, 0), textcoords="offset points", va="center", size=8)
    panel.set_xticks(range(len(axes)), list(axes))
    panel.set_yticks([])
    panel.set_xlim(-0.3, len(axes) - 0.5)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
    panel.set_title("Bold: the best. Grey: stopped early.", size=9, loc="left")
    with store.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path


def scaled(values: Sequence[float | None], logarithmic: bool) -> list[float | None]:
    """Values -> 0 to 1 from the least to the greatest (0.5 where all are equal); None stays."""
    turned = [math.log(value) if logarithmic and value is not None else value for value in values]
    known = [value for value in turned if value is not None]
    low, span = min(known), max(known) - min(known)
    return [None if value is None else (value - low) / span if span else 0.5 for value in turned]
