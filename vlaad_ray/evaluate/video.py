"""MP4 files that any browser plays: cameras side by side over a thin caption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlaad_ray.configs import Location
from vlaad_ray.files import replacing
from vlaad_ray.store.video import VideoError, encoding

__all__ = ["VideoError", "frame", "write_mp4"]

CAPTION_HEIGHT = 20
CONSTANT_RATE_FACTOR = 26
"""x264 quality: an episode of 200 steps and two 128-px cameras at scale 2 takes 0.2-0.4 MB, small enough to embed."""


def frame(images: Mapping[str, np.ndarray], caption: str = "", scale: int = 2) -> np.ndarray:
    """One video frame: the cameras side by side, in the mapping's order, over a strip with `caption`.

    Images are [H, W, 3] uint8 of one height; they are enlarged `scale` times, so that a 128-px camera leaves room for
    legible text. Returns [scale * H (+ CAPTION_HEIGHT if captioned), scale * sum of widths, 3] uint8.
    """
    cameras = np.concatenate(list(images.values()), axis=1)
    height, width = scale * cameras.shape[0], scale * cameras.shape[1]
    picture = Image.fromarray(cameras).resize((width, height), Image.Resampling.BICUBIC)
    if not caption:
        return np.asarray(picture)
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "black")
    canvas.paste(picture, (0, 0))
    ImageDraw.Draw(canvas).text((6, height + 3), caption, fill=(225, 225, 225), font=ImageFont.load_default(12))
    return np.asarray(canvas)


def write_mp4(path: Location, frames: Iterable[np.ndarray], fps: float) -> Location:
    """Write frames ([H, W, 3] uint8, all of one size; or one [T, H, W, 3] array) as H.264 yuv420p.

    An odd height or width gets its last row or column doubled (yuv420p needs even ones). The file appears whole or
    not at all. Raises ValueError when there are no frames or they differ in size, VideoError when ffmpeg fails.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    height, width, _ = first.shape
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    options = ("-pix_fmt", "yuv420p", "-crf", str(CONSTANT_RATE_FACTOR))
    with (
        replacing(path) as temporary,
        encoding(temporary, height + height % 2, width + width % 2, fps, options) as write,
    ):
        for image in chain([first], frames):
            if image.shape != first.shape or image.dtype != np.uint8:
                raise ValueError(f"{path}: frames must be uint8 of one size, {first.shape}; got {image.shape}")
            write(np.pad(image, padding, mode="edge").tobytes())
    return path
