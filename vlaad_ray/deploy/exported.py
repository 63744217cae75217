"""An exported policy on disk: export.json, tokenizer.json and the graphs' files; loads without the student's own code.

export.json is written last and holds every other file's hash: a directory that a broken run or copy left behind does
not load.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlaad_ray.configs import Location, UserError, read_record
from vlaad_ray.deploy import decoding
from vlaad_ray.deploy.backends import Precision, find_runtime, module
from vlaad_ray.deploy.backends.graphs import PARTS, GraphBackend
from vlaad_ray.files import read_json, sha256
from vlaad_ray.models.student import bins
from vlaad_ray.models.student.model import Decoded
from vlaad_ray.types import LIBERO

FORMAT = "vlaad_ray export"
SCHEMA_VERSION = 1
MANIFEST, TOKENIZER = "export.json", "tokenizer.json"


@dataclass(frozen=True)
class Interface:
    """What of a student's config its inputs and outputs depend on."""

    image_size: int
    cameras: tuple[str, ...]
    proprio: bool
    chunk: int
    text_length: int
    bins: int = 0
    """N of a student that answers in bins; 0: its exported graph answers with actions."""
    action_dim: int = LIBERO.action_dim
    proprio_dim: int = LIBERO.proprio_dim
    gripper: int | None = LIBERO.gripper
    """Its place in an action; None: there is none."""


@dataclass(frozen=True)
class Manifest:
    """What export.json holds."""

    backend: str
    """One of backends.BACKENDS."""
    precision: Precision
    source: str
    """Name of the checkpoint that it was made from, which is a hash of its weights."""
    interface: Interface
    training: dict[str, Any]
    """The checkpoint's record of its training."""
    files: Mapping[str, str]
    """File -> SHA-256, hexadecimal."""
    versions: Mapping[str, str]
    """Of the packages that made it."""

    @property
    def name(self) -> str:
        """For names of episodes: the same weights, quantised on other frames, are another policy."""
        digest = hashlib.sha256("".join(self.files[name] for name in sorted(self.files)).encode()).hexdigest()
        return f"{self.source}-{self.backend}-{self.precision}-{digest[:8]}"


def is_export(directory: Location) -> bool:
    return (directory / MANIFEST).is_file()


def graph_files(backend: str) -> tuple[str, ...]:
    """Names of the files of all three graphs."""
    return tuple(name for part in PARTS for name in module(backend).files(part))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(manifest)}
    (directory / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_manifest(directory: Location) -> Manifest:
    """export.json, checked for format and version. Cheap: no graph is read."""
    path = directory / MANIFEST
    again = "export the checkpoint again (jobs/export.py)"
    content = read_json(path, "pass a directory that jobs/export.py wrote", again)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a {FORMAT}; pass a directory that jobs/export.py wrote")
    if (version := content.pop("schema_version", None)) != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}, this vlaad_ray reads {SCHEMA_VERSION}; {again}")
    manifest = read_record(Manifest, content, str(path), again)
    find_runtime(manifest.backend)
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its hash: a truncated graph may load, and move the robot anywhere."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the whole exported directory")
        if sha256(path) != expected:
            raise UserError(f"{path} is not the file that was exported; copy the directory again")


def open_graphs(
    directory: Path, backend: str, precision: Precision, threads: int, interface: Interface
) -> GraphBackend:
    """The three graphs. `decide` stays fp32 whatever the rest runs in."""
    runs = module(backend)

    def opened(part: str, at: Precision) -> Any:
        return runs.open_graph(directory / runs.files(part)[0], at, threads)

    text, perceive, decide = PARTS
    graphs = opened(text, precision), opened(perceive, precision), opened(decide, "fp32")
    return GraphBackend(
        f"{backend}-{precision}", *graphs, functools.partial(decoding.decode, meaning=meaning(interface))
    )


def meaning(interface: Interface) -> Callable[[Tensor], Decoded]:
    """What the last graph's output tells a robot. Needs no code of the architecture."""
    return functools.partial(bins.decode, gripper=interface.gripper) if interface.bins else Decoded
