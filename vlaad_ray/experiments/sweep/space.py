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
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Method
from vlaad_ray.models.student import STUDENTS
from vlaad_ray.train.prepare import complete

INTEGERS = ("phases", "chunk", "lora_rank")
LOGARITHMIC = ("lr", "phase_weight", "direction_weight")
"""Axes whose intervals are searched evenly in the exponent."""


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
        check_matters(axis, config.train)
        trained = complete(config.train)
        holders: tuple[Any, ...] = (TrainConfig, type(trained.method), type(trained.network))
        for holder in holders:
            if axis.name in hints(holder):  # a trial's setting may be what a training's may be
                check_value(axis.flag, axis.interval or axis.choices, marks_of(hints(holder)[axis.name]))
        if config.search == "grid" and not axis.choices:
            raise UserError(f"{axis.flag}: a grid needs choices such as 0.1,0.3,1, not an interval; leave it out: ''")
        if axis.name == "phases":
            unknown = set(axis.choices) - set(TAXONOMIES)
            if unknown:
                raise UserError(f"{axis.flag}: no taxonomy of {min(unknown):g} phases; choose from {TAXONOMIES}")
            if config.train.annotations is not None:
                raise UserError("--annotations has one taxonomy; leave it out, or do without --space.phases")
    return axes


def check_matters(axis: Axis, config: TrainConfig) -> None:
    """Raises UserError for a setting that neither the training nor its objective nor its student has."""
    if axis.name in {field.name for field in dataclasses.fields(TrainConfig)}:
        return
    objectives = [name for name, method in METHODS.items() if _has(axis.name, method)]
    students = [name for name, preset in STUDENTS.items() if axis.name in _names(preset.config)]
    for flag, chosen, fitting in (("objective", config.objective, objectives), ("student", config.student, students)):
        if fitting and chosen not in fitting:
            raise UserError(
                f"{axis.flag}: changes nothing with --{flag} {chosen} (but with {', '.join(fitting)}); leave it out: "
                f"{axis.flag} ''"
            )


def _has(setting: str, method: Method) -> bool:
    return method.annotated if setting == "phases" else setting in _names(method.config)


def _names(config_type: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_type)}


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
