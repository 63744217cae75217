"""From a teacher's checkpoint to the training that starts from it, and the teacher in a worker's process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlaad_ray import store
from vlaad_ray.configs import Location, TrainConfig
from vlaad_ray.methods.actdistill.teacher import teacher_config
from vlaad_ray.models.student import STUDENTS, checkpoint
from vlaad_ray.models.student.preprocess import chunk_targets
from vlaad_ray.models.student.text import TextTokenizer
from vlaad_ray.models.vla.mini import MiniVla
from vlaad_ray.train.data import episode_pictures

READ_BATCH = 64
"""Frames that a network reads at once where nothing is trained. Another number would change the last bits."""


def from_teacher(config: TrainConfig, place: Location, objective: str, method: Any) -> TrainConfig:
    """`config`, starting from the checkpoint at `place`, whose network it is then. Raises UserError for a wrong one."""
    teacher = teacher_config(place, "--checkpoint")
    student, preset = next(each for each in STUDENTS.items() if each[1].architecture == teacher.architecture)
    shape = vars(teacher)
    network = preset.config(**{each.name: shape[each.name] for each in fields(preset.config) if each.name in shape})
    return replace(
        config,
        start_from=place,
        student=student,
        network=network,
        objective=objective,
        method=method,
        chunk=teacher.chunk,
        image_size=teacher.image_size,
        cameras=teacher.cameras,
        proprio=teacher.proprio,
    )


@functools.lru_cache(maxsize=1)
def loaded(place: Location, name: str, device: str) -> tuple[MiniVla, TextTokenizer]:
    """A checkpoint's network and tokenizer; once in a process, which reads many episodes. `name`: checkpoint_name."""
    found = checkpoint.from_pretrained(place)
    assert isinstance(found.student, MiniVla)
    return found.student.to(device).requires_grad_(False), found.tokenizer


class Frames(NamedTuple):
    """Some of an episode's pictured frames, as a network reads them."""

    steps: np.ndarray
    """[B] int32."""
    images: Tensor
    proprio: Tensor
    instruction: Tensor
    actions: Tensor


def frames_of(path: Location, network: MiniVla, tokenizer: TextTokenizer, device: str) -> Iterator[Frames]:
    """All pictured frames of an episode, READ_BATCH at a time."""
    config = network.config
    episode = store.read_episode(path, images=config.cameras)
    pictures = episode_pictures(episode, config)
    targets = chunk_targets(episode.actions, config.chunk)
    tokens = torch.from_numpy(tokenizer([episode.instruction])).to(torch.int64)
    for start in range(0, len(pictures["steps"]), READ_BATCH):
        steps = pictures["steps"][start : start + READ_BATCH]
        yield Frames(
            steps,
            torch.from_numpy(pictures["images"][start : start + READ_BATCH]).to(device),
            torch.from_numpy(episode.proprio[steps].astype(np.float32)).to(device),
            tokens.expand(len(steps), -1).to(device),
            torch.from_numpy(targets[steps]).to(device),
        )
