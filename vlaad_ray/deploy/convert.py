"""From a student in torch to the three graphs of an exported directory.

torch.export -> ONNX -> for OpenVINO its own format, quantised by NNCF if asked for. Each part is one graph of batch 1;
through ONNX also for OpenVINO, as its own reading of the same torch program ran a third as fast (docs/backends.md).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, nn

from vlaad_ray.configs import UserError
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.backends.graphs import PARTS, Precision
from vlaad_ray.deploy.exported import GraphFormat, Manifest
from vlaad_ray.deploy.loading import interface
from vlaad_ray.files import sha256
from vlaad_ray.models.student.checkpoint import Pretrained
from vlaad_ray.models.student.model import Student
from vlaad_ray.types import PROPRIO_DIM

OPSET = 20
"""Version of ONNX's operators: the first with GELU."""
LARGE_CONSTANT = 2**14
"""Bytes."""
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]
"""images [1, C, S, S, 3] uint8, proprio [1, 8] float32, encoded text [1, D] float32."""


class Part(nn.Module):
    """One method of a student as a module of its own."""

    def __init__(self, student: Student, name: str):
        super().__init__()
        self.student, self.name = student, name

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.name == "text":
            return self.student.embed_text(*inputs)
        return self.student.perceive(*inputs) if self.name == "perceive" else self.student.decide(*inputs)


def check_backend(backend: GraphFormat, precision: Precision) -> None:
    """Raise UserError for what can't be made, before any work."""
    known = exported.backend_module(backend).PRECISIONS
    if precision not in known:
        raise UserError(f"--precision {precision}: {backend} runs {', '.join(known)} here; int8 and bf16 need openvino")
    needed = ("onnx", "onnxscript", *(("nncf",) if precision == "int8" else ()))
    installed = {each.metadata["Name"].lower() for each in metadata.distributions()}
    if missing := [name for name in needed if name not in installed]:
        raise UserError(f"exporting needs {' and '.join(missing)}; pip install 'vlaad-ray[export]'")


def convert(
    pretrained: Pretrained,
    source: str,
    directory: Path,
    backend: GraphFormat,
    precision: Precision,
    calibration: Sequence[Sample] = (),
) -> Manifest:
    """Write the graphs and the tokenizer into `directory`; its manifest is returned, to be written when all is well.

    `source`: the checkpoint's name. `calibration`: what int8's ranges are taken from.
    """
    check_backend(backend, precision)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / exported.MANIFEST).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        onnx_folder = directory if backend == "onnx" else Path(temporary)
        write_onnx(pretrained.student, onnx_folder)
        if backend == "openvino":
            write_openvino(onnx_folder, directory, precision, calibration)
    pretrained.tokenizer.save(directory / exported.TOKENIZER)
    names = (exported.TOKENIZER, *exported.graph_files(backend))
    packages = ("torch", "onnx", "onnxruntime") if backend == "onnx" else ("torch", "onnx", "openvino", "nncf")
    return Manifest(
        backend=backend,
        precision=precision,
        source=source,
        interface=interface(pretrained),
        training=pretrained.training,
        files={name: sha256(directory / name) for name in names},
        versions={name: metadata.version(name) for name in packages},
    )


def write_onnx(student: Student, directory: Path) -> None:
    """PARTS as .onnx files, fp32."""
    student.eval().requires_grad_(False)
    config = student.config
    cameras, size = len(config.cameras), config.image_size
    tokens = torch.ones(1, config.text_length, dtype=torch.int64)
    images = torch.zeros(1, cameras, size, size, 3, dtype=torch.uint8)
    proprio = torch.zeros(1, PROPRIO_DIM)
    with torch.no_grad():
        text = student.encode_text(tokens)
        features = student.perceive(images, proprio, text)
    inputs: dict[str, dict[str, Tensor]] = {
        "text": {"tokens": tokens},
        "perceive": {"images": images, "proprio": proprio, "text": text},
        "decide": {"features": features},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself, some forty lines
        for part in PARTS:
            program = torch.export.export(Part(student, part), tuple(inputs[part].values()))
            names = list(inputs[part])
            exporter = torch.onnx.export(
                program, input_names=names, output_names=["output"], opset_version=OPSET, dynamo=True, verbose=False
            )
            assert exporter is not None
            exporter.save(directory / f"{part}.onnx", external_data=False)


def write_openvino(onnx_folder: Path, directory: Path, precision: Precision, calibration: Sequence[Sample]) -> None:
    """PARTS as OpenVINO's .xml and .bin. Only `perceive` is quantised: the text runs once an episode."""
    import openvino

    for part in PARTS:
        # Not openvino.convert_model, which sends usage data without asking.
        graph, path = openvino.Core().read_model(onnx_folder / f"{part}.onnx"), directory / f"{part}.xml"
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
