"""Flags of a command line that depend on others: --suite, --teacher, --student … choose an entry with flags of its own.

A stage's config has a field that names the entry (`suite`) and one that holds the entry's settings (`env`), of a type
that the entry knows. tyro wants types before it reads a word, so the names are looked up first.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from vlaad_ray import plugins
from vlaad_ray.configs import Flat, UserError


@dataclass(frozen=True)
class Door:
    """A field that names an entry, and where its settings go."""

    name: str
    settings: str
    entries: str
    """The dict of entries, as module:variable: imported when somebody names an entry, so that --help stays quick."""
    others: bool = False
    """Whether the field may hold other words (a checkpoint's directory), which have no settings."""


DOORS = (
    Door("suite", "env", "vlaad_ray.envs:SUITES"),
    Door("teacher", "teacher_config", "vlaad_ray.teachers:TEACHERS"),
    Door("policy", "teacher_config", "vlaad_ray.teachers:TEACHERS", others=True),
    Door("student", "network", "vlaad_ray.models.student:STUDENTS"),
    Door("objective", "method", "vlaad_ray.methods:METHODS"),
)


def take_plugins(args: Sequence[str]) -> list[str]:
    """Import what --plugin names, and return the other words."""
    words = list(args)
    while any(word == "--plugin" or word.startswith("--plugin=") for word in words):
        at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--plugin")
        _, equals, value = words[at].partition("=")
        if not equals and at + 1 == len(words):
            raise UserError("--plugin needs a module's name, as for `import`")
        plugins.use(value if equals else words[at + 1])
        del words[at : at + (1 if equals else 2)]
    return words


def with_settings(config_type: type[Any], args: Sequence[str], prefix: str = "") -> type[Any]:
    """`config_type` with the settings of the entries that `args` name in place of its own, nested configs included.

    The same class where nothing changes; else a subclass for tyro, whose values `plain` turns into `config_type` again.
    """
    hints = get_type_hints(config_type, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    changed: dict[str, tuple[Any, Any]] = {}
    for door in DOORS:
        if not {door.name, door.settings} <= fields.keys():
            continue
        chosen = _value(args, f"{prefix}{door.name}")
        if chosen is not None and (settings := _settings_type(door, chosen)) is not None:
            changed[door.settings] = (_flat_as(hints[door.settings], settings), settings())
    for name, hint in hints.items():
        nested = _dataclass_in(hint)
        if name in changed or name not in fields or nested is None:
            continue
        inner = with_settings(nested, args, prefix if _is_flat(hint) else f"{prefix}{_flag(name)}.")
        if inner is not nested:
            field = fields[name]
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            value = default if default is dataclasses.MISSING else _as(default, inner)
            changed[name] = (_flat_as(hint, inner), value)
    if not changed:
        return config_type
    replaced = [
        (name, hint, *([] if value is dataclasses.MISSING else [value])) for name, (hint, value) in changed.items()
    ]
    made = dataclasses.make_dataclass(
        config_type.__name__,
        replaced,
        bases=(config_type,),
        namespace={"__doc__": config_type.__doc__, "__module__": config_type.__module__},
        frozen=True,
    )
    made.plain_type = config_type  # type: ignore[attr-defined]
    return made


def plain(config: Any) -> Any:
    """A value of a class that `with_settings` made -> the same of the class that it was made from."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    values = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    kind = type(config).__dict__.get("plain_type", type(config))
    return kind(**values)


def _settings_type(door: Door, chosen: str) -> type[Any] | None:
    module, _, variable = door.entries.partition(":")
    entries = getattr(importlib.import_module(module), variable)
    if door.others and chosen not in entries:
        return None
    settings: type[Any] = plugins.lookup(door.name, entries, chosen).config
    return settings


def _value(args: Sequence[str], name: str) -> str | None:
    """What the last `--name VALUE` or `--name=VALUE` says."""
    flag, found = f"--{_flag(name)}", None  # tyro takes either of _ and -
    for at, word in enumerate(args):
        head, equals, value = word.partition("=")
        if head.replace("_", "-") != flag:
            continue
        if equals:
            found = value
        elif at + 1 < len(args):
            found = args[at + 1]
    return found


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _dataclass_in(hint: Any) -> type[Any] | None:
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return bare if isinstance(bare, type) and dataclasses.is_dataclass(bare) else None


def _is_flat(hint: Any) -> bool:
    return get_origin(hint) is Annotated and hint == Flat[get_args(hint)[0]]


def _flat_as(hint: Any, inner: type[Any]) -> Any:
    """`hint`, flat or not, of another dataclass."""
    return Flat[inner] if _is_flat(hint) else inner


def _as(value: Any, kind: type[Any]) -> Any:
    """A dataclass value as one of the subclass `kind`, which has defaults of its own for what differs."""
    own = inspect.get_annotations(kind)
    return kind(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in own})
