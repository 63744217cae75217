"""The search space: from the texts of SpaceConfig to axes, and from axes to Ray Tune's domains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from vlaad_ray.configs import TAXONOMIES, SweepConfig, TrainConfig, UserError
from vlaad_ray.configs.bounds import check_value, hints, marks_of

INTEGERS = ("phases", "chunk", "lora_rank")
LOGARITHMIC = ("lr", "phase_weight", "direction_weight")
"""Axes whose intervals are searched evenly in the exponent."""
MATTERS_TO = {
    "alpha": ("dual_path", "both"),
    "phases": ("dual_path", "auxiliary", "both"),
    "phase_weight": ("auxiliary", "both"),
    "direction_weight": ("auxiliary", "both"),
}
"""Objectives that an axis changes anything for; the others matter to all."""


@dataclass(frozen=True)
class Axis:
    """One setting that varies: over `choices`, or else over the `interval`."""

    name: str
    choices: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None

    @property
    def flag(self) -> str:
        return f"--space.{self.name.replace('_', '-')}"


def read_axes(config: SweepConfig) -> list[Axis]:
    """The axes of a sweep, checked against what is searched and how. Raises UserError."""
    texts = dataclasses.asdict(config.space)
    axes = [parse_axis(name, text) for name, text in texts.items() if text.strip()]
    if not axes:
        raise UserError("nothing varies: give --space.… at least one choice or interval")
    for axis in axes:
        if axis.name in hints(TrainConfig):  # a trial's setting may be what a training's may be
            check_value(axis.flag, axis.interval or axis.choices, marks_of(hints(TrainConfig)[axis.name]))
        objectives = MATTERS_TO.get(axis.name)
        if objectives is not None and config.train.objective not in objectives:
            raise UserError(
                f"{axis.flag}: changes nothing with --objective {config.train.objective} (but with "
                f"{', '.join(objectives)}); leave it out: {axis.flag} ''"
            )
        if axis.name == "lora_rank" and config.train.student == "small":
            raise UserError(f"{axis.flag}: --student small has no adapters; choose --student vlaad_158m")
        if config.search == "grid" and not axis.choices:
            raise UserError(f"{axis.flag}: a grid needs choices such as 0.1,0.3,1, not an interval; leave it out: ''")
        if axis.name == "phases":
            unknown = set(axis.choices) - set(TAXONOMIES)
            if unknown:
                raise UserError(f"{axis.flag}: no taxonomy of {min(unknown):g} phases; choose from {TAXONOMIES}")
            if config.train.annotations is not None:
                raise UserError("--annotations has one taxonomy; leave it out, or do without --space.phases")
    return axes


def parse_axis(name: str, text: str) -> Axis:
    """`0.3,0.5` -> choices, `1e-4..1e-2` -> interval."""
    axis, text = Axis(name), text.replace(" ", "")
    low, dots, high = text.partition("..")
    try:
        numbers = [float(part) for part in ((low, high) if dots else text.split(","))]
    except ValueError:
        raise UserError(f"{axis.flag}: {text!r} is neither choices (0.3,0.5,1) nor an interval (0.3..1)") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{axis.flag}: {text!r} is not finite")
    if name in LOGARITHMIC and min(numbers) <= 0:
        raise UserError(f"{axis.flag}: {text!r} must be above 0, on its logarithmic scale")
    if dots:
        if name in INTEGERS:
            raise UserError(f"{axis.flag}: whole numbers are given as choices, 4,8,16, not as an interval")
        if not numbers[0] < numbers[1]:
            raise UserError(f"{axis.flag}: the interval {text!r} must go from less to more")
        return Axis(name, interval=(numbers[0], numbers[1]))
    if name in INTEGERS:
        if any(number != int(number) for number in numbers):
            raise UserError(f"{axis.flag}: {text!r} must be whole numbers")
        numbers = [int(number) for number in numbers]
    return Axis(name, choices=tuple(dict.fromkeys(numbers)))


def domains(axes: Sequence[Axis], search: str) -> dict[str, Any]:
    """Ray Tune's param_space."""
    return {axis.name: _domain(axis, search) for axis in axes}


def _domain(axis: Axis, search: str) -> Any:
    if axis.interval is not None:
        return (tune.loguniform if axis.name in LOGARITHMIC else tune.uniform)(*axis.interval)
    return tune.grid_search(list(axis.choices)) if search == "grid" else tune.choice(list(axis.choices))
