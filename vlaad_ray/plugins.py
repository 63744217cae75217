"""Doors: plain dicts, name -> entry, into which modules from outside the package may put entries of their own.

Such a module is named by --plugin MODULE, or by an installed package's entry point of the group "vlaad_ray.plugins". It
imports a door (`vlaad_ray.envs.SUITES`, `vlaad_ray.methods.METHODS` …) and adds a line to it (docs/extending.md).
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import metadata
from typing import TypeVar

from vlaad_ray.configs import UserError

GROUP = "vlaad_ray.plugins"
VARIABLE = "VLAAD_PLUGINS"
"""Names of modules, apart by commas. An environment variable, since every process of a job must know them."""

MOST_NAMED = 12
"""Of more entries than these, an error names the likeliest."""

Entry = TypeVar("Entry")


def lookup(kind: str, entries: Mapping[str, Entry], name: str) -> Entry:
    """The entry of a door called `name`, a plugin's if need be. Raises UserError that lists what there is."""
    if name not in entries:
        load_named()
    if name not in entries:
        known = ", ".join(entries if len(entries) <= MOST_NAMED else get_close_matches(name, entries, MOST_NAMED, 0))
        raise UserError(
            f"unknown {kind} {name!r}; choose one of {known}, or name the module that adds it: --plugin MODULE"
        )
    return entries[name]


def use(modules: str) -> None:
    """Import plugins now, and in every process that this one starts. `modules`: names, apart by commas."""
    known = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = ",".join(filter(None, [known, modules]))
    load(os.environ[VARIABLE])


def load_named() -> None:
    """Import the plugins that this process was started with, and those that are installed."""
    load(os.environ.get(VARIABLE, ""))


@functools.cache
def load(modules: str) -> None:
    """Import the modules of these names and those of installed entry points, once."""
    installed = [point.value for point in metadata.entry_points(group=GROUP)]
    for name in [*filter(None, modules.split(",")), *installed]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # something that the plugin itself imports
            raise UserError(
                f"--plugin {name}: no module of this name; write it as for `import`, and put its folder on PYTHONPATH"
            ) from None
