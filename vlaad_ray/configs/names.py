"""Which settings a name is made from: names of episodes and evaluations must stay while settings are added."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_LATER = "later"
Later = Annotated[T, _LATER]
"""A setting that there was not when names were first made: at its default it is no part of them, so that names stay."""


def named_settings(config: Any, *names: str) -> dict[str, Any]:
    """The fields `names` of a config (all, if none is named) as plain nested values, for `config_hash`.

    Left out is what is Later and at its default, in nested configs too.
    """
    hints = get_type_hints(type(config), include_extras=True)
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if (names and field.name not in names) or (_is_later(hints[field.name]) and value == field.default):
            continue
        kept[field.name] = named_settings(value) if dataclasses.is_dataclass(value) else value
    return kept


def _is_later(hint: Any) -> bool:
    return get_origin(hint) is Annotated and _LATER in get_args(hint)[1:]
