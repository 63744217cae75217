"""Flags of a command line that depend on others: --suite, --teacher, --student … choose an entry with flags of its own.

A stage's config has a field that names the entry (`suite`) and one that holds the entry's settings (`env`), of a type
that the entry knows. tyro wants types before it reads a word, so the names are looked up first.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from vlaad_ray import plugins
from vlaad_ray.configs import UserError, with_packages
from vlaad_ray.configs.bounds import NO_PREFIX, elsewhere


@dataclass(frozen=True)
class Door:
    """A field that names an entry, and where its settings go."""

    name: str
    settings: str
    entries: str
    """The dict of entries, as module:variable: imported when somebody names an entry, so that --help stays quick."""
    others: bool = False
    """Whether the field may hold other words (a checkpoint's directory), which have no settings."""
    extra: str = "train"
    """Of vlaad-ray's extras, the one that brings what those entries import."""


DOORS: tuple[Door, ...] = (
    Door("suite", "env", "vlaad_ray.envs:SUITES", extra="sim"),
    Door("teacher", "teacher_config", "vlaad_ray.teachers:TEACHERS", extra="sim"),
    Door("policy", "teacher_config", "vlaad_ray.teachers:TEACHERS", others=True, extra="sim"),
    Door("student", "network", "vlaad_ray.models.student:STUDENTS"),
    Door("objective", "method", "vlaad_ray.methods:METHODS"),
    Door("format", "layout", "vlaad_ray.exchange:FORMATS", extra="pipeline"),
    Door("source", "reading", "vlaad_ray.exchange:SOURCES", extra="pipeline"),
)

SETTINGS = frozenset(door.settings for door in DOORS)


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


def with_settings(
    config_type: type[Any], args: Sequence[str], prefix: str = "", hidden: Sequence[str] = ()
) -> type[Any]:
    """`config_type` with the settings of the entries that `args` name in place of its own, nested configs included.

    The same class where nothing changes; else a subclass for tyro, whose values `plain` turns into `config_type` again.
    `hidden`: fields without a flag.
    """
    hints = get_type_hints(config_type, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    changed: dict[str, tuple[Any, Any]] = {
        name: (Annotated[hints[name], tyro.conf.Suppress], _default(fields[name])) for name in hidden
    }
    settled = []
    for door in DOORS:
        if not {door.name, door.settings} <= fields.keys() or door.settings in hidden:
            continue
        chosen = _value(args, f"{prefix}{door.name}")
        if chosen is None and fields[door.settings].default is None:  # nobody named one: the usual one has flags, too
            chosen = str(fields[door.name].default)
        if chosen is not None and (settings := _settings_type(door, chosen)) is not None:
            changed[door.settings] = (_with_type(hints[door.settings], settings), settings())
            settled.append(door.settings)
    for name, field in fields.items():
        nested = _dataclass_in(hints[name])
        if name in changed or nested is None:
            continue
        marks = get_args(hints[name])[1:] if get_origin(hints[name]) is Annotated else ()
        inner_prefix = prefix if NO_PREFIX in marks else f"{prefix}{_name(name, marks)}."
        inner = with_settings(nested, args, inner_prefix, elsewhere(hints[name]))
        if inner is not nested:
            default = _default(field)
            changed[name] = (_with_type(hints[name], inner), default if default is MISSING else _as(default, inner))
    if not changed:
        return config_type
    made = dataclasses.make_dataclass(
        config_type.__name__,
        [(name, hint, dataclasses.field(default=value)) for name, (hint, value) in changed.items()],
        bases=(config_type,),
        namespace={"__doc__": config_type.__doc__, "__module__": config_type.__module__},
        frozen=True,
    )
    made.plain_type, made.settled = config_type, settled  # type: ignore[attr-defined]
    return made


def foreign_settings(config_type: type[Any], args: Sequence[str]) -> set[str]:
    """Names of settings that entries have of the doors which `config_type` leaves open, but none that `args` name."""
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    own, every = set(fields), set[str]()
    for door in DOORS:
        if not {door.name, door.settings} <= fields.keys():
            continue
        chosen = _value(args, door.name) or fields[door.name].default
        for name, entry in _entries(door).items():
            settings = {field.name for field in dataclasses.fields(entry.config)}
            every |= settings
            own |= settings if name == chosen else set()
    return every - own


def plain(config: Any) -> Any:
    """A value of a class that `with_settings` made -> the same of the class that it was made from."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    values = {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    kind = type(config).__dict__.get("plain_type", type(config))
    return kind(**values)


def _settings_type(door: Door, chosen: str) -> type[Any] | None:
    entries = _entries(door)
    if door.others and chosen not in entries:
        return None
    settings: type[Any] = plugins.lookup(door.name, entries, chosen).config
    return settings


def _entries(door: Door) -> dict[str, Any]:
    module, _, variable = door.entries.partition(":")
    loaded = with_packages(lambda: importlib.import_module(module), f"--{door.name}", f"vlaad-ray[{door.extra}]")
    entries: dict[str, Any] = getattr(loaded, variable)
    return entries


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


def _name(name: str, marks: Sequence[Any]) -> str:
    """What a nested config's flags begin with: its field's name, or another that it is annotated with."""
    given = [mark.name for mark in marks if hasattr(mark, "name")]
    return given[0] if given else _flag(name)


def _with_type(hint: Any, inner: type[Any]) -> Any:
    """`hint` of another dataclass, annotated as before."""
    return Annotated[inner, *get_args(hint)[1:]] if get_origin(hint) is Annotated else inner


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _as(value: Any, kind: type[Any]) -> Any:
    """A dataclass value as one of the subclass `kind`; of entries' settings it takes the defaults of `kind`."""
    settled: Sequence[str] = kind.settled
    return kind(
        **{field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name not in settled}
    )
