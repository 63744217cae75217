"""Pixels and actions on their way into and out of a student: the same functions in training and at deployment.

Notation: B batch, C cameras, S image size, K chunk length, A numbers in an action, N bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from vlaad_ray.types import GRIPPER, LIBERO

SHIFT_PIXELS = 4
"""Random shift in training, at 96 pixels: scaled with the image size."""


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [size, size, 3] uint8, antialiased bilinear; unchanged when it has that size already."""
    if image.shape == (size, size, 3):
        return image
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def stack_cameras(images: Mapping[str, np.ndarray], cameras: Sequence[str], size: int) -> np.ndarray:
    """Camera name -> [H, W, 3] uint8 becomes [C, size, size, 3] uint8, in the order of `cameras`."""
    return np.stack([resize_image(images[camera], size) for camera in cameras])


def normalise_images(
    images: torch.Tensor, scale: float | torch.Tensor = 1 / 127.5, shift: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """[B, C, S, S, 3] uint8 -> [B, C, 3, S, S] float32: pixel * scale - shift, by default in [-1, 1].

    Channels-last in memory still (it is faster).
    """
    return images.permute(0, 1, 4, 2, 3).to(torch.float32).mul_(scale).sub_(shift)


def random_shift(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move every image by up to SHIFT_PIXELS either way, edges repeated. [B, C, S, S, 3] uint8 in and out."""
    batch, cameras, size = images.shape[:3]
    reach = max(1, round(SHIFT_PIXELS * size / 96))
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    shifted = np.empty_like(images)
    offsets = rng.integers(0, 2 * reach + 1, (batch, cameras, 2))
    for b in range(batch):
        for c in range(cameras):
            y, x = offsets[b, c]
            shifted[b, c] = padded[b, c, y : y + size, x : x + size]
    return shifted


Numbers = TypeVar("Numbers", np.ndarray, torch.Tensor)


def actions_to_bins(actions: Numbers, bins: int) -> Numbers:
    """Actions in [-1, 1] -> index of the uniform bin, same shape, int64. Values outside go to the outermost bin."""
    places = (actions + 1.0) * (bins / 2)
    if isinstance(places, torch.Tensor):
        return places.clip(0, bins - 1).to(torch.int64)
    return np.clip(places, 0, bins - 1).astype(np.int64)


def bins_to_actions(logits: torch.Tensor, gripper: int | None = LIBERO.gripper) -> torch.Tensor:
    """[..., A, N] logits -> [..., A] float32 actions in [-1, 1].

    The mean of the predicted distribution; the gripper is exactly -1 or +1, whichever half holds more probability. A
    teacher's reaction to what a single image does not show (its own velocity, say) spreads the target over many bins:
    the likeliest one is then a noisy choice, the mean is not (docs/experiments.md).
    """
    logits = logits.to(torch.float32)
    actions = logits.softmax(-1) @ bin_centres(logits)
    if gripper is not None:
        actions[..., gripper] = torch.where(closing_logit(logits, gripper) > 0, 1.0, -1.0)
    return actions


def translation_spread(logits: torch.Tensor, gripper: int | None = LIBERO.gripper) -> torch.Tensor:
    """[..., A, N] logits -> [..., 3] standard deviation of the predicted distribution of each translation.

    Translations are an action's first three numbers, or as many as there are before the gripper's.
    """
    translations = min(3, logits.shape[-2] if gripper is None else gripper)
    likely = logits[..., :translations, :].to(torch.float32).softmax(-1)
    centres = bin_centres(logits)
    mean = likely @ centres
    return (likely @ centres.square() - mean.square()).clamp_min(0).sqrt()


def bin_centres(logits: torch.Tensor) -> torch.Tensor:
    """[N] float32 in (-1, 1), of the bins that [..., N] logits are over."""
    bins = logits.shape[-1]
    return (torch.arange(bins, dtype=torch.float32, device=logits.device) + 0.5) * (2.0 / bins) - 1.0


def closing_logit(logits: torch.Tensor, gripper: int = GRIPPER) -> torch.Tensor:
    """[..., A, N] logits -> [...] log-odds that the gripper is to be closed: of the upper half of its bins."""
    closing = logits[..., gripper, :].to(torch.float32)
    half = closing.shape[-1] // 2
    return closing[..., half:].logsumexp(-1) - closing[..., :half].logsumexp(-1)


def chunk_targets(actions: np.ndarray, chunk: int) -> np.ndarray:
    """[T, A] -> [T, K, A]: actions t .. t+K-1, the last one repeated beyond the end of the episode."""
    steps = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), len(actions) - 1)
    return actions[steps]
