"""A checkpoint to resume from: what training changes, and nothing else. A frozen backbone stays where it came from.

trained.safetensors     parameters that are trained (adapters, heads; all of a small student), and its buffers
optimiser.safetensors   AdamW's state of each     progress.json   how far training has come
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from vlaad_ray import store
from vlaad_ray.methods.method import Learner
from vlaad_ray.models.student.checkpoint import load_tensors, save_tensors
from vlaad_ray.train.fit import Progress

TRAINED, OPTIMISER, PROGRESS = "trained.safetensors", "optimiser.safetensors", "progress.json"


def save(directory: Path, learner: Learner, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    frozen = {name for name, parameter in learner.named_parameters() if not parameter.requires_grad}
    save_tensors(
        directory / TRAINED, {name: tensor for name, tensor in learner.state_dict().items() if name not in frozen}
    )
    moments = {
        f"{name}/{kind}": value
        for name, parameter in learner.named_parameters()
        for kind, value in optimiser.state.get(parameter, {}).items()
    }
    save_tensors(directory / OPTIMISER, moments)
    store.write_json(directory / PROGRESS, dataclasses.asdict(progress))


def restore(directory: Path, learner: Learner, optimiser: torch.optim.Optimizer) -> Progress:
    """Put weights and optimiser state back; returns the progress they belong to."""
    load_trained(directory, learner)
    moments: dict[str, dict[str, Tensor]] = {}
    for path, value in load_tensors(directory / OPTIMISER).items():
        name, _, kind = path.partition("/")
        moments.setdefault(name, {})[kind] = value
    for name, parameter in learner.named_parameters():
        if name in moments:
            optimiser.state[parameter] = {
                kind: value.to(parameter.device) if kind == "step" else torch.empty_like(parameter).copy_(value)
                for kind, value in moments[name].items()
            }
    return read_progress(directory)


def load_trained(directory: Path, learner: Learner) -> None:
    """Weights alone, into a learner made with the same settings."""
    learner.load_state_dict({**learner.state_dict(), **load_tensors(directory / TRAINED)})


def read_progress(directory: Path) -> Progress:
    return Progress(**store.read_json(directory / PROGRESS))
