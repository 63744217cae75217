"""Which settings say where and on what machines something runs, and never what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args

from vlaad_ray.configs.bounds import hints, marks_of

T = TypeVar("T")
_MACHINE = "machine"
Machine = Annotated[T, _MACHINE]
"""A setting that may differ when the same work is continued: a place, a number of workers, a time-out."""


def content(config: Any) -> dict[str, Any]:
    """A config as plain nested values, without its Machine settings: what is equal for equal results."""
    config_type: Any = type(config)
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _MACHINE not in marks_of(hints(config_type)[field.name]):
            kept[field.name] = content(value) if dataclasses.is_dataclass(value) else value
    return kept


def machine_flags(config_type: Any) -> Iterator[str]:
    """Names of a config's Machine settings, and of all settings in nested ones that are Machine as a whole."""
    for name, hint in hints(config_type).items():
        kind = get_args(hint)[0] if marks_of(hint) else hint
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        if _MACHINE in marks_of(hint):
            yield from (field.name for field in dataclasses.fields(kind)) if nested else (name,)
        elif nested:
            yield from machine_flags(kind)
