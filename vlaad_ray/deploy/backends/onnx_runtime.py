"""Exported graphs in ONNX Runtime, fp32, on CPU."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from vlaad_ray.deploy.backends import Precision
from vlaad_ray.deploy.backends.graphs import PARTS, Graph, Sample


def files(part: str) -> tuple[str, ...]:
    """Names of the files that hold a part."""
    return (f"{part}.onnx",)


def open_graph(path: Path, precision: Precision, threads: int) -> Graph:
    """`path`: of the .onnx file. Raises RuntimeError for what is no graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: np.ndarray) -> np.ndarray:
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return run


def write_graphs(onnx: Path, directory: Path, precision: Precision, calibration: Sequence[Sample]) -> None:
    """The .onnx files as they are."""
    for part in PARTS:
        shutil.copyfile(onnx / f"{part}.onnx", directory / f"{part}.onnx")
