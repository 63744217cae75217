"""vlaad_158m's entry: CLIP's weights in, adapters on, adapters merged. Imports transformers when used, not before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

from vlaad_ray.configs import Location, Machine, UserError, location
from vlaad_ray.configs.bounds import at_least
from vlaad_ray.models.student.model import Student, StudentConfig
from vlaad_ray.models.student.presets import Design, Preset, Wish, first_camera

RANDOM = "random"
"""As a backbone: random weights, made once and kept beside the run."""

ACTIVATION_BYTES = 110
"""Kept for the backward pass a layer, token and channel of the vision tower: 0.2 GB a picture with ViT-B/16 in bf16,
where 0.14 to 0.19 were measured."""


@dataclass(frozen=True)
class Vlaad158mConfig:
    """Where CLIP's weights come from, and how they are adapted."""

    backbone: Machine[str] = ""
    """CLIP ViT-B/16 or Long-CLIP, a directory in transformers' format or a name on the hub. "random": random weights,
    to try things out."""
    lora_rank: Annotated[int, at_least(1)] = 8
    """Rank of the adapters in both towers."""


def network() -> tuple[type[StudentConfig], type[Student]]:
    from vlaad_ray.models.student import clip

    return clip.ClipConfig, clip.ClipStudent


def check(settings: Vlaad158mConfig, image_size: int) -> None:
    if not settings.backbone:
        raise UserError(
            "--student vlaad_158m needs --backbone DIR_OR_NAME, a CLIP ViT-B/16 or Long-CLIP in transformers' "
            "format (or, to try things out, --backbone random)"
        )
    if image_size and (image_size % 16 or image_size < 32):
        raise UserError(f"--image-size {image_size}: choose a multiple of 16, 32 or more")


def reads(settings: Vlaad158mConfig) -> dict[str, Location]:
    return {} if settings.backbone in ("", RANDOM) else {"--backbone": location(settings.backbone)}


def absolute(settings: Vlaad158mConfig) -> Vlaad158mConfig:
    """A directory's whole path or URI; a name on the hub as it is."""
    if settings.backbone in ("", RANDOM):
        return settings
    place = location(settings.backbone)
    if isinstance(place, Path) and not place.is_dir():
        return settings
    return replace(settings, backbone=str(place.resolve()))


def drawn(settings: Vlaad158mConfig) -> Vlaad158mConfig:
    return replace(settings, backbone=RANDOM)


def design(settings: Vlaad158mConfig, wish: Wish) -> Design:
    """A random backbone is written to wish.folder/backbone, unless it is there already."""
    from vlaad_ray.models.student import backbone, clip

    if settings.backbone == RANDOM:
        place = wish.folder / "backbone"
        settings = replace(settings, backbone=str(place))
        if not (place / backbone.CONFIG).exists():
            drawn = clip.ClipConfig(image_size=wish.image_size or clip.ClipConfig.image_size)
            backbone.write_random(place, wish.texts, drawn, wish.seed)
    config, tokenizer = backbone.read(settings.backbone)
    if wish.image_size not in (0, config.image_size):
        raise UserError(
            f"--image-size {wish.image_size}: the backbone sees {config.image_size} pixels; leave the flag out"
        )
    return Design(settings, config, tokenizer)


def weights(student: Student, settings: Vlaad158mConfig) -> None:
    from vlaad_ray.models.student import backbone, clip

    with backbone.located(settings.backbone) as directory:
        backbone.load(cast(clip.ClipStudent, student), directory)


def adapt(student: Student, settings: Vlaad158mConfig) -> None:
    from vlaad_ray.models.student import clip, lora

    lora.add_lora(cast(clip.ClipStudent, student), settings.lora_rank)


def finish(student: Student) -> None:
    from vlaad_ray.models.student import clip, lora

    lora.merge_lora(cast(clip.ClipStudent, student))


def identity(settings: Vlaad158mConfig) -> dict[str, str]:
    """The hash of the backbone's weights; of random ones their name, as they follow from the seed."""
    from vlaad_ray.models.student import backbone

    if settings.backbone == RANDOM:
        return {"backbone": RANDOM}
    return {"backbone": backbone.fingerprint(settings.backbone)}


def activation_bytes(config: StudentConfig) -> int:
    from vlaad_ray.models.student import clip

    shape = cast(clip.ClipConfig, config)
    tokens = len(shape.cameras) * ((shape.image_size // shape.patch_size) ** 2 + 1)
    return ACTIVATION_BYTES * shape.vision_layers * tokens * shape.vision_width


VLAAD_158M = Preset(
    architecture="clip",
    network=network,
    config=Vlaad158mConfig,
    cameras=first_camera,
    check=check,
    reads=reads,
    absolute=absolute,
    drawn=drawn,
    design=design,
    weights=weights,
    adapt=adapt,
    finish=finish,
    identity=identity,
    activation_bytes=activation_bytes,
)
