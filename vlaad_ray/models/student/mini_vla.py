"""mini_vla's entry: OpenVLA's architecture at 12 M parameters. Imports transformers when used, not before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from vlaad_ray.configs import UserError
from vlaad_ray.configs.bounds import at_least
from vlaad_ray.models.student.model import Student, StudentConfig
from vlaad_ray.models.student.presets import Design, Preset, Wish
from vlaad_ray.models.student.text import train_tokenizer

HEAD_WIDTH = 64
"""Numbers of an attention head, in the decoder and in the ViT."""

ACTIVATION_BYTES = 100
"""Kept for the backward pass a decoder layer, token and channel, in bf16; 84 were measured at the default's size, the
vision's share included: 23 MB a frame."""


@dataclass(frozen=True)
class MiniVlaSettings:
    """Sizes of the network."""

    depth: Annotated[int, at_least(3)] = 12
    """Decoder layers."""
    width: Annotated[int, at_least(HEAD_WIDTH)] = 256
    """Of the decoder, a multiple of 64."""
    vision_depth: Annotated[int, at_least(1)] = 4
    """Blocks of the vision transformer."""
    vision_width: Annotated[int, at_least(HEAD_WIDTH)] = 128
    """Of the vision transformer, a multiple of 64."""
    stem: bool = True
    """Convolutions before the patches: small data is learnt faster."""


def network() -> tuple[type[StudentConfig], type[Student]]:
    from vlaad_ray.models.vla import mini

    return mini.MiniVlaConfig, mini.MiniVla


def check(settings: MiniVlaSettings, image_size: int) -> None:
    for name, width in (("--width", settings.width), ("--vision-width", settings.vision_width)):
        if width % HEAD_WIDTH:
            raise UserError(f"{name} {width}: choose a multiple of {HEAD_WIDTH}, the width of an attention head")
    if image_size % 14:
        raise UserError(f"--image-size {image_size}: choose a multiple of 14, the side of a patch")


def design(settings: MiniVlaSettings, wish: Wish) -> Design:
    from vlaad_ray.models.vla.mini import MiniVlaConfig

    tokenizer = train_tokenizer(wish.texts, MiniVlaConfig.text_length)
    shape = MiniVlaConfig(
        vocabulary=tokenizer.vocabulary,
        image_size=wish.image_size or MiniVlaConfig.image_size,
        depth=settings.depth,
        width=settings.width,
        mlp_width=16 * round(settings.width * 8 / 3 / 16),
        heads=settings.width // HEAD_WIDTH,
        vision_depth=settings.vision_depth,
        vision_width=settings.vision_width,
        vision_heads=settings.vision_width // HEAD_WIDTH,
        stem=settings.stem,
    )
    return Design(settings, shape, tokenizer)


def activation_bytes(config: StudentConfig) -> int:
    from vlaad_ray.models.vla import mini

    shape = cast(mini.MiniVlaConfig, config)
    tokens = len(shape.cameras) * (shape.image_size // 14) ** 2 + shape.text_length + shape.chunk + 1
    return ACTIVATION_BYTES * shape.depth * tokens * shape.width


MINI_VLA = Preset(
    architecture="mini_vla",
    network=network,
    config=MiniVlaSettings,
    check=check,
    design=design,
    activation_bytes=activation_bytes,
)
