"""From a training config to a student that can be trained, and from that to the one that is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlaad_ray.configs import Location, TrainConfig, UserError, location
from vlaad_ray.models.student.model import Student, StudentConfig
from vlaad_ray.models.student.presets import PRESETS
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import TextTokenizer, train_tokenizer

RANDOM = "random"
"""As TrainConfig.backbone: random weights, made once and kept beside the run."""

ACTIVATION_BYTES = 110
"""Kept for the backward pass a layer, token and channel of the vision tower: 0.2 GB a picture with ViT-B/16 in bf16,
where 0.14 to 0.19 were measured."""


def reads(config: TrainConfig) -> dict[str, Location | None]:
    """Flag -> the directory that training reads there."""
    backbone = None if config.backbone in ("", RANDOM) else location(config.backbone)
    return {"--data": config.data, "--annotations": config.annotations, "--backbone": backbone}


def absolute(backbone: str) -> str:
    """A directory's whole path or URI, as workers run elsewhere; a name on the hub as it is."""
    if backbone in ("", RANDOM):
        return backbone
    place = location(backbone)
    return str(place.resolve()) if not isinstance(place, Path) or place.is_dir() else backbone


def backbone_identity(config: TrainConfig) -> str:
    """What must not change under a run: name and hash of the backbone's weights. "" for a student without one."""
    if PRESETS[config.student] == "small" or config.backbone == RANDOM:
        return config.backbone
    from vlaad_ray.models.student import backbone

    return backbone.fingerprint(config.backbone)


def design(
    config: TrainConfig, texts: Sequence[str], folder: Location
) -> tuple[TrainConfig, StudentConfig, TextTokenizer]:
    """The student's config and tokenizer, and the training config, its backbone resolved to files.

    A random backbone is written to folder/backbone, unless it is there already. Raises UserError where the settings
    and the backbone disagree.
    """
    student: StudentConfig
    if PRESETS[config.student] == "small":
        tokenizer = train_tokenizer(texts, SmallConfig.text_length)
        student = SmallConfig(vocabulary=tokenizer.vocabulary)
        if config.image_size:
            student = replace(student, image_size=config.image_size)
    else:
        from vlaad_ray.models.student import backbone, clip

        if config.backbone == RANDOM:
            place = folder / "backbone"
            config = replace(config, backbone=str(place))
            if not (place / backbone.CONFIG).exists():
                drawn = clip.ClipConfig(image_size=config.image_size or clip.ClipConfig.image_size)
                backbone.write_random(place, texts, drawn, config.seed)
        student, tokenizer = backbone.read(config.backbone)
        if config.image_size not in (0, student.image_size):
            raise UserError(
                f"--image-size {config.image_size}: the backbone sees {student.image_size} pixels; leave the flag out"
            )
    cameras = config.cameras or student.cameras
    return config, replace(student, cameras=cameras, proprio=config.proprio, chunk=config.chunk), tokenizer


def make_student(student_config: StudentConfig, config: TrainConfig) -> Student:
    """A student to train: drawn from the seed, with the backbone's weights and adapters if it has them."""
    torch.manual_seed(config.seed)
    if isinstance(student_config, SmallConfig):
        return SmallStudent(student_config)
    from vlaad_ray.models.student import backbone, clip

    assert isinstance(student_config, clip.ClipConfig)
    student = clip.ClipStudent(student_config)
    with backbone.located(config.backbone) as directory:
        backbone.load(student, directory)
    adapt(student, config.lora_rank)
    return student


def adapt(student: Student, lora_rank: int) -> None:
    """Leave trainable what is trained. A small student stays as it is."""
    if isinstance(student, SmallStudent):
        return
    from vlaad_ray.models.student import clip, lora

    assert isinstance(student, clip.ClipStudent)
    lora.add_lora(student, lora_rank)


def activation_bytes(student_config: StudentConfig) -> int:
    """Memory that each frame of a batch takes during a step, roughly; a small student's is nothing beside its data."""
    if isinstance(student_config, SmallConfig):
        return 0
    from vlaad_ray.models.student import clip

    assert isinstance(student_config, clip.ClipConfig)
    tokens = len(student_config.cameras) * ((student_config.image_size // student_config.patch_size) ** 2 + 1)
    return ACTIVATION_BYTES * student_config.vision_layers * tokens * student_config.vision_width


def finish(student: Student) -> None:
    """Make of a trained student the one that is deployed: without adapters. A small student stays as it is."""
    if isinstance(student, SmallStudent):
        return
    from vlaad_ray.models.student import clip, lora

    assert isinstance(student, clip.ClipStudent)
    lora.merge_lora(student)
