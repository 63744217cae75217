"""How many parameters a preset has: python -m vlaad_ray.train.count --preset vlaad_158m. No weights are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import tyro

from vlaad_ray.configs import TAXONOMIES, TrainConfig, check_bounds
from vlaad_ray.configs.bounds import at_least
from vlaad_ray.methods.vlaad.learner import AuxiliaryHeads
from vlaad_ray.models.student.presets import PRESETS, network
from vlaad_ray.runtime.cli import console, key_value_table, users_errors
from vlaad_ray.train import prepare


@dataclass(frozen=True)
class CountConfig:
    """Count a student's parameters."""

    preset: Literal["small", "vlaad_158m"] = "vlaad_158m"
    lora_rank: Annotated[int, at_least(1)] = TrainConfig.lora_rank
    """vlaad_158m: rank of the adapters."""
    cameras: tuple[str, ...] = ()
    """none: the preset's."""
    proprio: bool = True


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters."""

    total: int
    """In training, adapters included, auxiliary heads not."""
    trainable: int
    adapters: int
    """Of the trainable ones. Merged into the weights at export."""
    deployed: int
    """In the exported checkpoint."""
    auxiliary: int
    """On top, in training with --objective auxiliary or both and the largest taxonomy."""


def count(config: CountConfig) -> Counts:
    """Built on torch's meta device: shapes without memory."""
    config_type, network_type = network(PRESETS[config.preset])
    student_config = config_type()
    student_config = replace(student_config, cameras=config.cameras or student_config.cameras, proprio=config.proprio)
    with torch.device("meta"):
        student = network_type(student_config)
        deployed = _count(student)
        prepare.adapt(student, config.lora_rank)
        heads = AuxiliaryHeads(student.summary_width, max(TAXONOMIES), student_config.text_width)
    total = _count(student)
    trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return Counts(total, trainable, total - deployed, deployed, _count(heads))


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    with users_errors():
        check_bounds(config := tyro.cli(CountConfig))
    counts = count(config)
    rows = {
        "total in training": f"{counts.total:,}",
        "trainable": f"{counts.trainable:,}",
        "of these adapters, merged at export": f"{counts.adapters:,}",
        "deployed": f"{counts.deployed:,}",
        "auxiliary heads, in training on top": f"{counts.auxiliary:,}",
    }
    console.print(key_value_table(f"Parameters of {config.preset}", rows))
