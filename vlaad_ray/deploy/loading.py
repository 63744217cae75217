"""From a directory to a network that runs: a checkpoint of jobs/train.py, or what jobs/export.py made of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vlaad_ray.configs import Location, UserError
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.backends import Backend
from vlaad_ray.deploy.backends.pytorch import Dtype, TorchBackend
from vlaad_ray.deploy.exported import Interface
from vlaad_ray.files import local_copy
from vlaad_ray.models.student.checkpoint import Pretrained, checkpoint_name, from_pretrained, read_config
from vlaad_ray.models.student.text import TextTokenizer, load_tokenizer

BackendName = Literal["torch", "onnx", "openvino"]


@dataclass(frozen=True)
class Runnable:
    """A network with all that its inputs and outputs depend on."""

    backend: Backend
    interface: Interface
    tokenizer: TextTokenizer
    training: Mapping[str, Any]
    """The checkpoint's record of its training: objective, data, render mode, init states."""


def load(
    directory: Location, device: str = "cpu", dtype: Dtype | None = None, backend: BackendName | None = None
) -> Runnable:
    """Open a checkpoint in torch, or an exported directory in what it was exported for, with as many threads as torch.

    `device` and `dtype` (None: fp32) are a checkpoint's choice; an export has its own. `backend`: refuse anything else.
    Raises UserError for a missing, corrupt or foreign directory.
    """
    if not exported.is_export(directory):
        if backend not in (None, "torch"):
            raise UserError(
                f"{directory} is a checkpoint, which torch runs; for {backend} export it first: "
                f"jobs/export.py --checkpoint {directory} --backend {backend} --data DATA --out DIR"
            )
        return in_torch(from_pretrained(directory), device, dtype or "fp32")
    manifest = exported.read_manifest(directory)
    if backend not in (None, manifest.backend):
        raise UserError(f"{directory} was exported for {manifest.backend}; {backend} can't run it")
    if dtype not in (None, manifest.precision) or device != "cpu":
        raise UserError(
            f"{directory} runs in {manifest.precision} on CPU, as it was exported; --dtype and --device are for "
            "checkpoints"
        )
    with local_copy(directory) as folder:
        exported.check_files(folder, manifest)
        return Runnable(
            exported.open_graphs(folder, manifest.backend, manifest.precision, torch.get_num_threads()),
            manifest.interface,
            load_tokenizer(folder / exported.TOKENIZER, manifest.interface.text_length),
            manifest.training,
        )


def in_torch(pretrained: Pretrained, device: str = "cpu", dtype: Dtype = "fp32") -> Runnable:
    """A checkpoint that has been read already. The student is taken over."""
    backend = TorchBackend(pretrained.student, device, dtype)
    return Runnable(backend, interface(pretrained), pretrained.tokenizer, pretrained.training)


def interface(pretrained: Pretrained) -> Interface:
    config = pretrained.student.config
    return Interface(config.image_size, config.cameras, config.proprio, config.chunk, config.bins, config.text_length)


def describe(directory: Location) -> tuple[str, dict[str, Any]]:
    """(name, training record) of a checkpoint or an exported directory. Loads no network."""
    if exported.is_export(directory):
        manifest = exported.read_manifest(directory)
        return manifest.name, manifest.training
    training = read_config(directory)["training"]
    return checkpoint_name(directory), training
