"""From LIBERO's camera and instruction to OpenVLA's inputs, as its authors evaluate it, without TensorFlow.

Theirs (experiments/robot/libero/libero_utils.py, openvla_utils.py): rotate LIBERO's raw image by 180 degrees; encode
and decode it as JPEG; resize to 224 pixels with Lanczos3; crop the middle 90 % of the area and resize that back,
bilinear. Each step rounds to 8 bits. Against TensorFlow 2.21 the JPEG step is equal to the bit; in resizing and
cropping a few pixels in ten thousand round the other way (1 of 255), since float32 sums depend on their order.

All in numpy: it runs in the environments' processes, many side by side, which need no torch for it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from vlaad_ray.types import Observation

EMPTY_TOKEN = 29871
"""Llama's lone space. In training it stood between "Out:" and the first action token; the prompt alone lacks it."""
CAMERA = "agentview"

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


def prepare(observation: Observation, size: int) -> Observation:
    """What OpenVLA needs of an observation: its one camera, prepared; a third of the bytes of both cameras.

    Raises ValueError for an observation without the agentview image, or one of another size than LIBERO's protocol.
    """
    image = observation.images.get(CAMERA)
    if image is None:
        got = ", ".join(observation.images) or "none"
        raise ValueError(f"camera {CAMERA!r} is missing: OpenVLA looks through it (got: {got})")
    if image.dtype != np.uint8 or image.shape != (RAW_SIZE, RAW_SIZE, 3):
        raise ValueError(
            f"camera {CAMERA!r}: expected [{RAW_SIZE}, {RAW_SIZE}, 3] uint8, got {list(image.shape)} {image.dtype}; "
            f"OpenVLA's LIBERO checkpoints were trained on exact rendering at image size {RAW_SIZE}"
        )
    return dataclasses.replace(observation, images={CAMERA: prepare_image(image, size)})


def prepare_image(image: np.ndarray, size: int) -> np.ndarray:
    """[256, 256, 3] uint8, upright (Observation.images) -> [size, size, 3] uint8.

    LIBERO's raw image is upside down. The authors rotate it by 180 degrees, which sets it upright *and* mirrors it left
    to right: so an upright image only has to be mirrored.
    """
    return centre_crop(resize_lanczos3(jpeg_round_trip(image[:, ::-1]), size))


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


def resize_lanczos3(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [size, size, 3] uint8, as tf.image.resize(method="lanczos3", antialias=True), rounded."""
    height, width, channels = image.shape
    pixels = image.astype(np.float32).reshape(height, width * channels)
    rows = (lanczos3_weights(height, size) @ pixels).reshape(size, width, channels)
    columns = np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(width, size * channels)
    resized = (lanczos3_weights(width, size) @ columns).reshape(size, size, channels)
    return resized.swapaxes(0, 1).round().clip(0, 255).astype(np.uint8)


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


def centre_crop(image: np.ndarray) -> np.ndarray:
    """[S, S, 3] uint8 -> its middle CROP_AREA, resized back to [S, S, 3] uint8.

    As tf.image.crop_and_resize does: corner pixels' centres of the crop become those of the result, bilinear. The way
    back to 8 bits is tf.image.convert_image_dtype's: times 255.5, cut off.
    """
    size = len(image)
    side = math.sqrt(CROP_AREA)
    at = (1 - side) / 2 * (size - 1) + side * np.arange(size)
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float32)

    pixels = image.astype(np.float32) / 255
    across = _lerp(pixels[:, low], pixels[:, low + 1], share[None, :, None])
    cropped = _lerp(across[low], across[low + 1], share[:, None, None])
    return (cropped.clip(0, 1) * np.float32(255.5)).clip(max=255).astype(np.uint8)


def _lerp(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + share * (second - first)
