"""Which settings a name is made from: names of episodes and of studies' pieces must stay while settings are added."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Since:
    """Marks a setting that names of before do not hold: at its default it is no part of them."""

    generation: int


EPISODES, STUDIES = 0, 1
"""Generations of settings that were there when episodes, and pieces of studies, got the names that they have."""
Later = Annotated[T, Since(1)]
"""A setting that came after the names of episodes and before those of studies."""
Newer = Annotated[T, Since(2)]
"""A setting that came after both. A new one that changes what an episode contains is marked so."""


def named_settings(config: Any, *names: str, generation: int = EPISODES) -> dict[str, Any]:
    """The fields `names` of a config (all, if none is named) as plain nested values, for `config_hash`.

    Left out, in nested configs too, is what came after `generation` and is at its default.
    """
    hints = get_type_hints(type(config), include_extras=True)
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        came_after = _since(hints[field.name]) > generation
        if (names and field.name not in names) or (came_after and value == field.default):
            continue
        kept[field.name] = named_settings(value, generation=generation) if dataclasses.is_dataclass(value) else value
    return kept


def _since(hint: Any) -> int:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return max((mark.generation for mark in marks if isinstance(mark, Since)), default=0)
