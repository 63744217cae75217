"""Exported graphs in ONNX Runtime, fp32, on CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from vlaad_ray.deploy.backends.graphs import Graph, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32",)


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
