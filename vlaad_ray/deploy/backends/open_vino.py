"""Exported graphs in OpenVINO on CPU: fp32, bf16 (fp32 where the CPU has none), or int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino

from vlaad_ray.deploy.backends.graphs import Graph, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")


def files(part: str) -> tuple[str, ...]:
    """Names of the files that hold a part."""
    return (f"{part}.xml", f"{part}.bin")


def open_graph(path: Path, precision: Precision, threads: int) -> Graph:
    """`path`: of the .xml file. What int8 leaves unquantised runs in bf16. Raises RuntimeError for what is no graph."""
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(*inputs: np.ndarray) -> np.ndarray:
        return request.infer(list(inputs), share_inputs=True)[0]

    return run
