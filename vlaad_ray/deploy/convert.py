"""From a student in torch to the three graphs of an exported directory.

torch.export -> ONNX -> the backend's own format, quantised if asked for. Each part is one graph of batch 1.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from vlaad_ray.configs import UserError
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.backends import BACKENDS, Precision, find_runtime, module
from vlaad_ray.deploy.backends.graphs import PARTS, Sample
from vlaad_ray.deploy.exported import Manifest
from vlaad_ray.deploy.loading import interface
from vlaad_ray.files import sha256
from vlaad_ray.models.student.bins import BinnedConfig
from vlaad_ray.models.student.checkpoint import Pretrained
from vlaad_ray.models.student.model import Student

OPSET = 20
"""Version of ONNX's operators: the first with GELU."""


class Part(nn.Module):
    """One method of a student as a module of its own."""

    def __init__(self, student: Student, name: str):
        super().__init__()
        self.student, self.name = student, name

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.name == "text":
            return self.student.embed_text(*inputs)
        if self.name == "perceive":
            return self.student.perceive(*inputs)
        output = self.student.decide(*inputs)
        # Only what is in bins can be decoded without the architecture's code.
        return output if isinstance(self.student.config, BinnedConfig) else self.student.decode(output).actions


def check_backend(backend: str, precision: Precision) -> None:
    """Raise UserError for what can't be made, before any work."""
    runtime = find_runtime(backend)
    if precision not in runtime.precisions:
        others = [name for name, other in BACKENDS.items() if precision in other.precisions]
        remedy = f"; {precision} needs --backend {' or '.join(others)}" if others else ""
        raise UserError(f"--precision {precision}: {backend} runs {', '.join(runtime.precisions)} here{remedy}")
    module(backend)
    needed = ("onnx", "onnxscript", *runtime.needs.get(precision, ()))
    if missing := [name for name in needed if name not in installed()]:
        raise UserError(f"exporting needs {' and '.join(missing)}; pip install 'vlaad-ray[export]'")


def installed() -> dict[str, str]:
    """Distribution -> version."""
    return {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}


def convert(
    pretrained: Pretrained,
    source: str,
    directory: Path,
    backend: str,
    precision: Precision,
    calibration: Sequence[Sample] = (),
) -> Manifest:
    """Write the graphs and the tokenizer into `directory`; its manifest is returned, to be written when all is well.

    `source`: the checkpoint's name. `calibration`: what int8's ranges are taken from.
    """
    check_backend(backend, precision)
    if pretrained.student.dynamic:
        raise UserError(
            f"{source} has a router, and a graph holds one route: export a checkpoint with a fixed route, or run this "
            "one in torch"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / exported.MANIFEST).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        write_onnx(pretrained.student, Path(temporary))
        module(backend).write_graphs(Path(temporary), directory, precision, calibration)
    pretrained.tokenizer.save(directory / exported.TOKENIZER)
    names = (exported.TOKENIZER, *exported.graph_files(backend))
    versions = installed()
    return Manifest(
        backend=backend,
        precision=precision,
        source=source,
        interface=interface(pretrained),
        training=pretrained.training,
        files={name: sha256(directory / name) for name in names},
        versions={
            name: versions[name] for name in ("torch", "onnx", *find_runtime(backend).packages) if name in versions
        },
    )


def write_onnx(student: Student, directory: Path) -> None:
    """PARTS as .onnx files, fp32."""
    student.eval().requires_grad_(False)
    config = student.config
    cameras, size = len(config.cameras), config.image_size
    tokens = torch.ones(1, config.text_length, dtype=torch.int64)
    images = torch.zeros(1, cameras, size, size, 3, dtype=torch.uint8)
    proprio = torch.zeros(1, config.proprio_dim)
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
