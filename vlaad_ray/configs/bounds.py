"""What a setting may be, said where it is declared; `check_bounds` holds a whole config against it.

    lr: Annotated[float, above(0)] = 1e-3

A bound holds for every number in its field: the one, each of a tuple, none in None. No number may be NaN or infinite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from vlaad_ray.configs.errors import UserError

T = TypeVar("T")
NO_PREFIX: Any = tyro.conf.arg(name="")
Flat = Annotated[T, NO_PREFIX]
"""A nested config whose flags carry no prefix."""


@dataclass(frozen=True)
class Elsewhere:
    """Annotates a nested config: these fields have no flags, as the job sets them."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Bound:
    """An interval, in numbers and in words. `open_low`, `open_high`: without the end itself."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        low = value > self.low if self.open_low else value >= self.low
        high = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and low and high


@dataclass(frozen=True)
class Filled:
    """A tuple that must not be empty."""


FILLED = Filled()


def at_least(low: float) -> Bound:
    return Bound(f"{low:g} or more", low=low)


def above(low: float, up_to: float = math.inf) -> Bound:
    return Bound(f"above {low:g}" + (f", up to {up_to:g}" if math.isfinite(up_to) else ""), low, up_to, open_low=True)


def between(low: int | float, high: int | float) -> Bound:
    return Bound(f"{low} to {high}", low, high)


def below(high: float, low: float) -> Bound:
    return Bound(f"{low:g} to below {high:g}", low, high, open_high=True)


def check_bounds(config: Any) -> None:
    """Raise UserError for the first setting of a config, or of one nested in it, that is not what it may be."""
    for flag, value, marks in settings(config):
        check_value(flag, value, marks)


def check_value(flag: str, value: Any, marks: Iterable[Any]) -> None:
    """Raise UserError unless a setting is what its annotations say."""
    for mark in marks:
        if isinstance(mark, Filled) and not value:
            raise UserError(f"{flag} needs at least one value")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(mark, Bound) and isinstance(number, Real) and not mark.holds(float(number)):
                finite = "" if math.isfinite(number) else "finite, "
                raise UserError(f"{flag} must be {finite}{mark.words}, not {number}")


def settings(config: Any, prefix: str = "", hidden: Sequence[str] = ()) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Every setting that is not a config itself: its flag, its value, and what its declaration is annotated with.

    Left out: the fields in `hidden`, and what a nested config's Elsewhere names. The job sets these, and checks them.
    """
    config_type: Any = type(config)
    for name, hint in hints(config_type).items():
        value = getattr(config, name)
        marks = marks_of(hint)
        flag = next((mark.name for mark in marks if isinstance(mark, type(NO_PREFIX))), None)
        flag = name.replace("_", "-") if flag is None else flag
        if name in hidden:
            continue
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{flag}." if flag else prefix, elsewhere(hint))
        elif flag:  # else the settings of an entry, to be filled in with its own
            yield f"--{prefix}{flag}", value, marks


def elsewhere(hint: Any) -> list[str]:
    """Fields of a nested config that have no flags, by the type hint of its field."""
    return [field for mark in marks_of(hint) if isinstance(mark, Elsewhere) for field in mark.fields]


def marks_of(hint: Any) -> tuple[Any, ...]:
    """What a type is annotated with."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def hints(config_type: Any) -> dict[str, Any]:
    """Field -> its type, annotations included."""
    return get_type_hints(config_type, include_extras=True)
