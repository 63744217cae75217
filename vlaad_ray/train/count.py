"""How many parameters a preset has: python -m vlaad_ray.train.count --preset vlaad_158m. No weights are made."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro

from vlaad_ray.configs import TAXONOMIES, Flat, check_bounds, settings_of, users_errors
from vlaad_ray.methods import METHODS
from vlaad_ray.runtime import doors
from vlaad_ray.runtime.cli import console, key_value_table
from vlaad_ray.train.prepare import find_preset


@dataclass(frozen=True)
class CountConfig:
    """Count a student's parameters."""

    student: Annotated[str, tyro.conf.arg(aliases=["--preset"])] = "vlaad_158m"
    network: Flat[Any] = None
    """The preset's own settings; None: its defaults."""
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
    preset = find_preset(config.student)
    settings = settings_of(f"student {config.student}", preset.config, config.network)
    config_type, network_type = preset.network()
    student_config = config_type()
    student_config = replace(student_config, cameras=config.cameras or student_config.cameras, proprio=config.proprio)
    with torch.device("meta"):
        student = network_type(student_config)
        deployed = _count(student)
        preset.adapt(student, settings)
        largest = METHODS["both"]
        learner = largest.learner(largest.config(), student, [str(number) for number in range(max(TAXONOMIES))])
    total = _count(student)
    trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return Counts(total, trainable, total - deployed, deployed, _count(learner) - total)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    with users_errors():
        words = doors.take_plugins(sys.argv[1:])
        config = doors.plain(tyro.cli(doors.with_settings(CountConfig, words), args=words))
        check_bounds(config)
        counts = count(config)
    rows = {
        "total in training": f"{counts.total:,}",
        "trainable": f"{counts.trainable:,}",
        "of these adapters, merged at export": f"{counts.adapters:,}",
        "deployed": f"{counts.deployed:,}",
        "auxiliary heads, in training on top": f"{counts.auxiliary:,}",
    }
    console.print(key_value_table(f"Parameters of {config.student}", rows))
