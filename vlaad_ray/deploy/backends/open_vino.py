"""Exported graphs in OpenVINO on CPU: fp32, bf16 (fp32 where the CPU has none), or int8."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino

from vlaad_ray.configs import UserError
from vlaad_ray.deploy.backends import Precision
from vlaad_ray.deploy.backends.graphs import PARTS, Graph, Sample

LARGE_CONSTANT = 2**14
"""Bytes."""


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


def write_graphs(onnx: Path, directory: Path, precision: Precision, calibration: Sequence[Sample]) -> None:
    """PARTS as .xml and .bin. Only `perceive` is quantised: the text runs once an episode.

    Through ONNX: OpenVINO's own reading of the same torch program ran a third as fast (docs/backends.md).
    """
    for part in PARTS:
        # Not openvino.convert_model, which sends usage data without asking.
        graph, path = openvino.Core().read_model(onnx / f"{part}.onnx"), directory / f"{part}.xml"
        if part == "perceive" and precision == "int8":
            graph = quantise(graph, calibration)
        openvino.save_model(graph, path, compress_to_fp16=False)
        if part != "decide" and precision != "fp32":
            keep_small_constants(path)
            marked = openvino.Core().read_model(path, config={"ENABLE_MMAP": False})  # the file is overwritten
            openvino.save_model(marked, path, compress_to_fp16=True)


def keep_small_constants(path: Path) -> None:
    """Mark what isn't a matrix of weights in OpenVINO's .xml as "precise", so that it isn't stored in fp16.

    fp16 weights are finer than the bf16 that is made of them, and save 0.3 GB of memory. But proprioception's
    statistics would lose three digits, and 4 % of the bins would change. No Python call sets this mark.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and data.get("element_type") == "f32":
            if int(data.get("size", 0)) >= LARGE_CONSTANT:
                continue
            if (notes := layer.find("rt_info")) is None:
                notes = ElementTree.Element("rt_info")
                layer.insert(list(layer).index(data) + 1, notes)
            ElementTree.SubElement(notes, "attribute", name="precise", version="0")
    tree.write(path)


def quantise(graph: Any, calibration: Iterable[Sample]) -> Any:
    """Post-training quantisation by NNCF: weights and activations to int8, ranges from `calibration`.

    Only what looks at the picture: nearly all of the work. With FiLM and proprioception in int8 as well, 84 % of a
    small student's greedy bins stayed the same, without 94 % (docs/backends.md). And only products with weights:
    attention in int8 made vlaad_158m slower by a tenth.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it sends usage data without asking
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    samples = list(calibration)
    if not samples:
        raise UserError("int8 needs frames to calibrate on: give --data")
    products = [op for op in graph.get_ops() if op.get_type_name() == "MatMul"]
    blind = {op.get_friendly_name() for op in products} - sighted(graph)
    attention = {op.get_friendly_name() for op in products if not weighted(op)}
    return nncf.quantize(
        graph,
        nncf.Dataset(samples, list),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=sorted(blind | attention)),
    )


def weighted(product: Any) -> bool:
    """Whether a matrix product is with stored weights, not of two activations."""
    node = product.input_value(1).get_node()
    while node.get_type_name() == "Convert":  # weights may be stored in fp16
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def sighted(graph: Any) -> set[str]:
    """Names of the operations of `perceive` whose result depends on the images."""
    names: set[str] = set()
    waiting = [graph.input("images").get_node()]
    while waiting:
        names.add((node := waiting.pop()).get_friendly_name())
        readers = [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
        waiting += [reader for reader in readers if reader.get_friendly_name() not in names]
    return names
