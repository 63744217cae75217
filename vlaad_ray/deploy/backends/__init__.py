"""Where a student's network runs: one module for each way, none of them imported before it is wanted.

pytorch runs a checkpoint; onnx_runtime and open_vino run what jobs/export.py wrote (graphs: what those two share). All
of them keep the network's last part, `decide`, in fp32: with it in bf16 only 96.4 % of the greedy bins stayed the same
(docs/backends.md), and it is a small part of the work.

Notation: B batch, C cameras, S image size, P numbers of proprioception, L tokens, D text features.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from vlaad_ray import plugins
from vlaad_ray.configs import with_packages
from vlaad_ray.types import ActionChunk

Precision = Literal["fp32", "bf16", "int8"]


class Backend(Protocol):
    """A network between its preprocessing and the robot. Not for several threads at once."""

    name: str
    """What tells it apart in a table: torch-bf16, openvino-int8."""

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        """[B, L] int64 -> [B, D] float32, or the form [B, …] in which the network reads texts."""

    def output(self, images: np.ndarray, proprio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """[B, C, S, S, 3] uint8, [B, P] float32, encoded text float32 -> what the network says, [B, K, …] float32.

        Of a student that answers in bins it is their logits (deploy/decoding.py).
        """

    def decode(self, output: np.ndarray) -> list[ActionChunk]:
        """What each output [K, …] tells a robot to do. Raises FloatingPointError for what is not finite."""


@dataclass(frozen=True)
class Runtime:
    """What runs exported graphs. Its module has three functions:

    files(part) -> names of the files that hold a part of graphs.PARTS, the one to open first;
    open_graph(path, precision, threads) -> graphs.Graph;
    write_graphs(onnx, directory, precision, calibration): the parts, from .onnx files in the folder `onnx`.
    """

    module: str
    """Imported when the backend is wanted: it needs a package that others can do without."""
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...]
    """Distributions whose versions are noted in an export, where they are installed."""
    extra: str
    """Of vlaad-ray's extras, the one that brings what runs an export."""
    needs: Mapping[Precision, tuple[str, ...]] = field(default_factory=dict)
    """Distributions that writing a precision takes, beside those of ONNX."""


BACKENDS: dict[str, Runtime] = {
    "onnx": Runtime("vlaad_ray.deploy.backends.onnx_runtime", ("fp32",), ("onnxruntime",), "onnx"),
    "openvino": Runtime(
        "vlaad_ray.deploy.backends.open_vino",
        ("fp32", "bf16", "int8"),
        ("openvino", "nncf"),
        "openvino",
        needs={"int8": ("nncf",)},
    ),
}
"""Name (--backend) -> what runs its exports. Another one is a module and a line here."""


def find_runtime(backend: str) -> Runtime:
    """Raises UserError for an unknown one."""
    return plugins.lookup("backend", BACKENDS, backend)


def module(backend: str) -> Any:
    """The module of a backend. Raises UserError where its package is not installed."""
    runtime = find_runtime(backend)
    return with_packages(lambda: importlib.import_module(runtime.module), backend, f"vlaad-ray[{runtime.extra}]")
