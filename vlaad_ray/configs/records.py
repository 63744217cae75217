"""Dataclasses out of JSON and into it: what a checkpoint, an export or a stage's summary says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vlaad_ray.configs.errors import UserError

Record = TypeVar("Record")
_ABSENT = "absent"


def absent() -> Any:
    """A field that is None where there is nothing to say, and then no key of the JSON."""
    return dataclasses.field(default=None, metadata={_ABSENT: True})


def write_record(record: Any) -> dict[str, Any]:
    """What JSON holds of a dataclass: its fields by name, values as they are."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    missing = {field.name for field in dataclasses.fields(record) if _ABSENT in field.metadata}
    return {name: value for name, value in values.items() if value is not None or name not in missing}


def read_record(kind: type[Record], content: Any, source: str, remedy: str) -> Record:
    """The dataclass `kind` of what JSON holds, also of dataclasses, tuples and mappings within it.

    Entries that it has no field for are passed over, as of a newer version. Raises UserError, naming the `source` and
    the `remedy`, where one is missing that has no default, or is no object where a dataclass is meant.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} is not an object; {remedy}")
    plain: Any = kind
    fields = [field for field in dataclasses.fields(plain) if field.init]
    known = {field.name: content[field.name] for field in fields if field.name in content}
    missing = [field.name for field in fields if field.name not in known and not _has_default(field)]
    if missing:
        raise UserError(f"{source} has no {missing[0]!r}; {remedy}")
    hints = _hints(plain)
    return kind(**{name: _value(hints[name], value, f"{source}: {name}", remedy) for name, value in known.items()})


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _value(hint: Any, value: Any, source: str, remedy: str) -> Any:
    """`value` as JSON holds it -> as the type `hint` wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        choices = [each for each in inner if each is not type(None)]
        return value if value is None or len(choices) != 1 else _value(choices[0], value, source, remedy)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_record(hint, value, source, remedy)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source} is not a list; {remedy}")
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_value(each, part, source, remedy) for each, part in zip(kinds, value, strict=False))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _value(inner[1], part, f"{source}: {key}", remedy) for key, part in value.items()}
    return value
