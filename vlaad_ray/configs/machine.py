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


def machine_flags(config_type: Any) -> Iterator[str]:
    """Names of a config's Machine settings, and of all settings in nested ones that are Machine as a whole."""
    for name, hint in hints(config_type).items():
        kind = get_args(hint)[0] if marks_of(hint) else hint
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        if is_machine(hint):
            yield from (field.name for field in dataclasses.fields(kind)) if nested else (name,)
        elif nested:
            yield from machine_flags(kind)


def is_machine(hint: Any) -> bool:
    """Whether a field with this type hint is a Machine setting."""
    return _MACHINE in marks_of(hint)
