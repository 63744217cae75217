"""An exported policy on disk: export.json, tokenizer.json and the graphs' files; loads without the student's own code.

export.json is written last and holds every other file's hash: a directory that a broken run or copy left behind does
not load.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlaad_ray.configs import Location, UserError
from vlaad_ray.deploy.backends.graphs import PARTS, GraphBackend, Precision
from vlaad_ray.files import read_bytes, sha256

FORMAT = "vlaad_ray export"
SCHEMA_VERSION = 1
MANIFEST, TOKENIZER = "export.json", "tokenizer.json"
GraphFormat = Literal["onnx", "openvino"]
BACKENDS: dict[str, str] = {
    "onnx": "vlaad_ray.deploy.backends.onnx_runtime",
    "openvino": "vlaad_ray.deploy.backends.open_vino",
}
"""Backend -> the module that opens its graphs; also the name of the extra that brings its package."""


@dataclass(frozen=True)
class Interface:
    """What of a student's config its inputs and outputs depend on."""

    image_size: int
    cameras: tuple[str, ...]
    proprio: bool
    chunk: int
    bins: int
    text_length: int


@dataclass(frozen=True)
class Manifest:
    """What export.json holds."""

    backend: GraphFormat
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


def backend_module(backend: str) -> Any:
    """The module of a backend. Raises UserError where its package is not installed."""
    try:
        return importlib.import_module(BACKENDS[backend])
    except ModuleNotFoundError as error:
        raise UserError(f"{backend} needs the package {error.name}; pip install 'vlaad-ray[{backend}]'") from None


def graph_files(backend: str) -> tuple[str, ...]:
    """Names of the files of all three graphs."""
    return tuple(name for part in PARTS for name in backend_module(backend).files(part))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(manifest)}
    (directory / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_manifest(directory: Location) -> Manifest:
    """export.json, checked for format and version. Cheap: no graph is read."""
    path = directory / MANIFEST
    again = "export the checkpoint again (jobs/export.py)"
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; pass a directory that jobs/export.py wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {again}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a {FORMAT}; pass a directory that jobs/export.py wrote")
    if (version := content.pop("schema_version", None)) != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}, this vlaad_ray reads {SCHEMA_VERSION}; {again}")
    try:
        interface = Interface(**{**content["interface"], "cameras": tuple(content["interface"]["cameras"])})
        manifest = Manifest(**{**content, "interface": interface})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} lacks an entry or has one too many ({error}); {again}") from None
    if manifest.backend not in BACKENDS:
        raise UserError(f"{path} names the backend {manifest.backend!r}; this vlaad_ray knows {', '.join(BACKENDS)}")
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its hash: a truncated graph may load, and move the robot anywhere."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the whole exported directory")
        if sha256(path) != expected:
            raise UserError(f"{path} is not the file that was exported; copy the directory again")


def open_graphs(directory: Path, backend: GraphFormat, precision: Precision, threads: int) -> GraphBackend:
    """The three graphs. `decide` stays fp32 whatever the rest runs in."""
    module = backend_module(backend)

    def opened(part: str, at: Precision) -> Any:
        return module.open_graph(directory / module.files(part)[0], at, threads)

    text, perceive, decide = PARTS
    return GraphBackend(
        f"{backend}-{precision}", opened(text, precision), opened(perceive, precision), opened(decide, "fp32")
    )
