"""From a directory to a network that runs: a checkpoint of jobs/train.py, or what jobs/export.py made of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlaad_ray.configs import Location, UserError, read_record
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.backends import Backend, Precision
from vlaad_ray.deploy.backends.pytorch import Dtype, Mode, TorchBackend
from vlaad_ray.deploy.exported import Interface
from vlaad_ray.files import local_copy
from vlaad_ray.models.student.checkpoint import Pretrained, checkpoint_name, from_pretrained, read_config
from vlaad_ray.models.student.text import TextTokenizer, load_tokenizer


@dataclass(frozen=True)
class Runnable:
    """A network with all that its inputs and outputs depend on."""

    backend: Backend
    interface: Interface
    tokenizer: TextTokenizer
    training: Mapping[str, Any]
    """The checkpoint's record of its training: objective, data, render mode, init states."""


def load(
    directory: Location,
    device: str = "cpu",
    dtype: Dtype | None = None,
    backend: str | None = None,
    mode: Mode | None = None,
) -> Runnable:
    """Open a checkpoint in torch, or an exported directory in what it was exported for, with as many threads as torch.

    `device`, `dtype` (None: fp32) and `mode` (None: TorchBackend's) are a checkpoint's choice; an export has its own.
    `backend` ("torch", or one of BACKENDS): refuse anything else.
    Raises UserError for a missing, corrupt or foreign directory.
    """
    if not exported.is_export(directory):
        if backend not in (None, "torch"):
            raise UserError(
                f"{directory} is a checkpoint, which torch runs; for {backend} export it first: "
                f"jobs/export.py --checkpoint {directory} --backend {backend} --data DATA --out DIR"
            )
        check_device(device)
        return in_torch(from_pretrained(directory), device, dtype or "fp32", mode)
    manifest = exported.read_manifest(directory)
    if backend not in (None, manifest.backend):
        raise UserError(f"{directory} was exported for {manifest.backend}; {backend} can't run it")
    check_runs(directory, device, dtype)
    with local_copy(directory) as folder:
        exported.check_files(folder, manifest)
        return Runnable(
            exported.open_graphs(
                folder, manifest.backend, manifest.precision, torch.get_num_threads(), manifest.interface
            ),
            manifest.interface,
            load_tokenizer(folder / exported.TOKENIZER, manifest.interface.text_length),
            manifest.training,
        )


def check_device(device: str) -> None:
    """Raises UserError unless torch computes on it here. Tried, since builds without one say so in many ways."""
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"--device {device}: torch {torch.__version__} cannot compute there ({str(error).splitlines()[0][:100]}); "
            "take --device cpu, or a build of torch and a machine that have it"
        ) from None


def check_runs(directory: Location, device: str, dtype: Precision | None) -> None:
    """Raises UserError for an export that is to run in another way than it was made for. Loads no network."""
    if not exported.is_export(directory):
        return
    manifest = exported.read_manifest(directory)
    if dtype not in (None, manifest.precision) or device != "cpu":
        raise UserError(
            f"{directory} runs in {manifest.precision} on CPU, as it was exported; another precision or device is for "
            "checkpoints"
        )


def in_torch(pretrained: Pretrained, device: str = "cpu", dtype: Dtype = "fp32", mode: Mode | None = None) -> Runnable:
    """A checkpoint that has been read already. The student is taken over."""
    backend = TorchBackend(pretrained.student, device, dtype, mode)
    return Runnable(backend, interface(pretrained), pretrained.tokenizer, pretrained.training)


def interface(pretrained: Pretrained) -> Interface:
    return read_record(Interface, asdict(pretrained.student.config), "the student", "train again")


@dataclass(frozen=True)
class Description:
    """What can be known of a directory without loading a network."""

    name: str
    """For names of episodes; tells checkpoints and exports of them apart."""
    interface: Interface
    training: Mapping[str, Any]
    """The checkpoint's record of its training."""


def describe(directory: Location) -> Description:
    """A checkpoint, or an exported directory. Raises UserError for anything else."""
    if exported.is_export(directory):
        manifest = exported.read_manifest(directory)
        return Description(manifest.name, manifest.interface, manifest.training)
    config = read_config(directory)
    known = read_record(
        Interface, config.get("student"), f"{directory}/config.json: 'student'", "copy the checkpoint again"
    )
    return Description(checkpoint_name(directory), known, config["training"])
