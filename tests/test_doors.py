"""Flags that another flag brings along, and modules from outside that add entries to a door."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import tyro

from vlaad_ray import plugins
from vlaad_ray.configs import Flat, UserError
from vlaad_ray.configs.bounds import Elsewhere
from vlaad_ray.runtime import doors


@dataclass(frozen=True)
class Near:
    size: int = 1
    """How large."""


@dataclass(frozen=True)
class Far:
    url: str = "here"
    """Where it is."""


@dataclass(frozen=True)
class Stage:
    """One stage."""

    suite: str = "near"
    env: Flat[Any] = field(default_factory=Near)


@dataclass(frozen=True)
class Whole:
    """Two stages, one of them flat."""

    first: Flat[Stage] = field(default_factory=Stage)
    second: Stage = field(default_factory=Stage)
    count: int = 2


@dataclass(frozen=True)
class Job:
    """A whole that sets some of its stage's fields itself."""

    stage: Annotated[Stage, tyro.conf.arg(name="eval"), Elsewhere(("suite",))] = field(
        default_factory=lambda: Stage("near", Near(7))
    )


ENTRIES = {"near": SimpleNamespace(config=Near), "far": SimpleNamespace(config=Far)}


@pytest.fixture(autouse=True)
def toy_door(monkeypatch):
    monkeypatch.setattr(doors, "DOORS", (doors.Door("suite", "env", f"{__name__}:ENTRIES"),))
    monkeypatch.setenv(plugins.VARIABLE, "")  # what a test adds goes with it, even if there was none before


def parse(kind: type[Any], *args: str) -> Any:
    return doors.plain(tyro.cli(doors.with_settings(kind, args), args=args))


def test_the_chosen_entry_brings_its_own_flags_and_the_config_keeps_its_class():
    config = parse(Stage, "--suite", "far", "--url", "there")
    assert config == Stage("far", Far("there"))
    assert type(config) is Stage


def test_flags_of_another_entry_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse(Stage, "--suite=far", "--size", "3")
    assert "--size" in capsys.readouterr().err


def test_nested_configs_choose_each_for_themselves():
    config = parse(Whole, "--second.suite", "far", "--second.url", "there", "--size", "4")
    assert config == Whole(Stage("near", Near(4)), Stage("far", Far("there")))


def test_what_a_job_sets_itself_has_no_flag_and_keeps_its_default(capsys):
    assert parse(Job) == Job()
    assert parse(Job, "--eval.size", "2") == Job(Stage("near", Near(2)))
    with pytest.raises(SystemExit):
        parse(Job, "--eval.suite", "near")
    assert "--eval.suite" in capsys.readouterr().err


def test_an_unknown_name_is_one_line_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown suite 'fa'; choose one of near, far, or .* --plugin"):
        parse(Stage, "--suite", "fa")


def test_a_plugin_is_known_in_this_process_and_in_those_that_it_starts(tmp_path, monkeypatch):
    (tmp_path / "outside_entries.py").write_text("NAMES = []\nNAMES.append('seen')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doors.take_plugins(["--plugin", "outside_entries", "--suite", "far"]) == ["--suite", "far"]
    assert sys.modules["outside_entries"].NAMES == ["seen"]
    code = (
        "import sys; from vlaad_ray import plugins\n"
        "try: plugins.lookup('suite', {}, 'x')\n"
        "except Exception: print('outside_entries' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True
    )
    assert done.stdout == "True\n"


def test_a_plugin_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="--plugin no_such_module: no module of this name"):
        doors.take_plugins(["--plugin=no_such_module"])


def test_what_a_plugin_itself_lacks_is_not_taken_for_a_missing_plugin(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        doors.take_plugins(["--plugin", "needs_more"])
