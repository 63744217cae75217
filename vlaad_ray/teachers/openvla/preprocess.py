"""From LIBERO's camera and instruction to OpenVLA's inputs, as its authors evaluate it, without TensorFlow.

Theirs (experiments/robot/libero/libero_utils.py, openvla_utils.py): rotate LIBERO's raw image by 180 degrees; encode
and decode it as JPEG; resize to 224 pixels with Lanczos3; crop the middle 90 % of the area and resize that back,
bilinear. Each step rounds to 8 bits. Against TensorFlow 2.21 the JPEG step is equal to the bit; in resizing and
cropping a few pixels in ten thousand round the other way (1 of 255), since float32 sums depend on their order.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

RAW_SIZE = 256
"""Pixels of LIBERO's camera in the authors' evaluation and, recorded afresh, in their training data."""
JPEG_QUALITY = 95
"""Default of tf.image.encode_jpeg, with chroma halved both ways (4:2:0)."""
CROP_AREA = 0.9
LANCZOS_RADIUS = 3


@dataclass(frozen=True)
class Normalisation:
    """Per tower: (pixel / 255 - mean) / std, from preprocessor_config.json."""

    means: tuple[tuple[float, ...], tuple[float, ...]]
    stds: tuple[tuple[float, ...], tuple[float, ...]]


def prompt(instruction: str) -> str:
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def prepare_image(image: np.ndarray, size: int, device: torch.device) -> Tensor:
    """[256, 256, 3] uint8, upright (Observation.images) -> [size, size, 3] uint8 on `device`, for `normalise`.

    LIBERO's raw image is upside down. The authors rotate it by 180 degrees, which sets it upright *and* mirrors it left
    to right: so an upright image only has to be mirrored.
    """
    mirrored = torch.from_numpy(jpeg_round_trip(image[:, ::-1])).to(device)
    return centre_crop(resize_lanczos3(mirrored, size))


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> the same after JPEG, whose artefacts the training data has; H and W even.

    To the bit what TensorFlow makes of it. Its decoder takes libjpeg's quick inverse DCT, which changes 75 % of the
    pixels, by 1.3 of 255 on average. Pillow only has that one together with plain repetition of the chroma samples;
    so libjpeg's interpolation of them ("fancy upsampling") and its colour conversion follow here, in integers.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    buffer.seek(0)
    decoded = JpegImageFile(buffer)
    decoded.draft("YCbCr", None)
    decoded.decoderconfig = (1, 1)  # full scale, quick DCT
    luma, *chroma = np.moveaxis(np.asarray(decoded).astype(np.int32), -1, 0)
    blue, red = (_interpolate(samples[::2, ::2]) - 128 for samples in chroma)
    rgb = (
        luma + (_fixed(1.402) * red + _HALF >> 16),
        luma + (-_fixed(0.34414) * blue - _fixed(0.71414) * red + _HALF >> 16),
        luma + (_fixed(1.772) * blue + _HALF >> 16),
    )
    return np.stack(rgb, axis=-1).clip(0, 255).astype(np.uint8)


def _interpolate(samples: np.ndarray) -> np.ndarray:
    """[H, W] -> [2H, 2W] int32: along both axes 3/4 of the nearer neighbour and 1/4 of the farther one."""
    padded = np.pad(samples, 1, mode="edge")
    rows = np.stack([3 * padded[1:-1] + padded[:-2], 3 * padded[1:-1] + padded[2:]], axis=1)
    rows = rows.reshape(-1, padded.shape[1])
    left, right = 3 * rows[:, 1:-1] + rows[:, :-2] + 8, 3 * rows[:, 1:-1] + rows[:, 2:] + 7
    return np.stack([left, right], axis=2).reshape(len(rows), -1) >> 4


_HALF = 1 << 15


def _fixed(factor: float) -> int:
    """libjpeg's 16-bit fixed point."""
    return int(factor * (1 << 16) + 0.5)


def resize_lanczos3(image: Tensor, size: int) -> Tensor:
    """[H, W, 3] uint8 -> [size, size, 3] uint8, as tf.image.resize(method="lanczos3", antialias=True), rounded."""
    height, width, channels = image.shape
    rows = torch.from_numpy(lanczos3_weights(height, size)).to(image.device)
    columns = torch.from_numpy(lanczos3_weights(width, size)).to(image.device)
    # One image at a time: batched products may round otherwise, and an image must not depend on others in its batch.
    resized = (rows @ image.float().reshape(height, width * channels)).reshape(size, width, channels)
    resized = (columns @ resized.transpose(0, 1).reshape(width, size * channels)).reshape(size, size, channels)
    return resized.transpose(0, 1).round().clamp(0, 255).to(torch.uint8)


@functools.cache
def lanczos3_weights(source: int, target: int) -> np.ndarray:
    """[target, source] float32: share of each source pixel in each target pixel along one axis.

    The kernel is sinc(x) sinc(x / 3) within |x| < 3, stretched by source / target when shrinking (antialiasing),
    sampled between pixel centres and normalised to sum 1; TensorFlow's ScaleAndTranslate does the same.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    distance = ((np.arange(source) + 0.5)[None] - (np.arange(target) + 0.5)[:, None] * scale) / stretch
    weights = np.where(np.abs(distance) < LANCZOS_RADIUS, np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def centre_crop(image: Tensor) -> Tensor:
    """[S, S, 3] uint8 -> its middle CROP_AREA, resized back to [S, S, 3] uint8.

    As tf.image.crop_and_resize does: corner pixels' centres of the crop become those of the result, bilinear. The way
    back to 8 bits is tf.image.convert_image_dtype's: times 255.5, cut off.
    """
    size = len(image)
    side = math.sqrt(CROP_AREA)
    first, step = (1 - side) / 2 * (size - 1), side
    at = first + step * torch.arange(size, dtype=torch.float64, device=image.device)
    low = at.floor().long()
    high, share = low + 1, (at - low).float()

    pixels = image.float() / 255
    across = torch.lerp(pixels[:, low], pixels[:, high], share[None, :, None])
    cropped = torch.lerp(across[low], across[high], share[:, None, None])
    return (cropped.clamp(0, 1) * 255.5).clamp(max=255).to(torch.uint8)


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """[B, S, S, 3] uint8 -> [B, 6, S, S] float32: the first tower's channels, then the second's."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return torch.cat(
        [
            (pixels - _channels(mean, pixels)) / _channels(std, pixels)
            for mean, std in zip(normalisation.means, normalisation.stds, strict=True)
        ],
        dim=1,
    )


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
