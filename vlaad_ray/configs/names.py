"""Which settings a name is made from: names of episodes and of studies' pieces must stay while settings are added."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar

from vlaad_ray.configs.bounds import hints, marks_of
from vlaad_ray.configs.machine import is_machine

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

    Left out, in nested configs too, are Machine settings, and what came after `generation` and is at its default.
    """
    types = hints(type(config))
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        came_after = _since(types[field.name]) > generation
        if (names and field.name not in names) or is_machine(types[field.name]):
            continue
        if came_after and value == field.default:
            continue
        kept[field.name] = named_settings(value, generation=generation) if dataclasses.is_dataclass(value) else value
    return kept


def content(config: Any) -> dict[str, Any]:
    """A config as plain nested values, without its Machine settings: what is equal for equal results."""
    return named_settings(config, generation=STUDIES)


def _since(hint: Any) -> int:
    return max((mark.generation for mark in marks_of(hint) if isinstance(mark, Since)), default=0)
