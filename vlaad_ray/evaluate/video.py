"""MP4 files that any browser plays: cameras side by side over a thin caption."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlaad_ray.configs import Location
from vlaad_ray.files import replacing

CAPTION_HEIGHT = 20
CONSTANT_RATE_FACTOR = 26
"""x264 quality: an episode of 200 steps and two 128-px cameras at scale 2 takes 0.2-0.4 MB, small enough to embed."""


class VideoError(Exception):
    """A video that could not be written. Its text says why, in one line."""


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

    def padded() -> Iterator[bytes]:
        for image in chain([first], frames):
            if image.shape != first.shape or image.dtype != np.uint8:
                raise ValueError(f"{path}: frames must be uint8 of one size, {first.shape}; got {image.shape}")
            yield np.pad(image, padding, mode="edge").tobytes()

    with replacing(path) as temporary:
        _encode(temporary, padded(), f"{width + width % 2}x{height + height % 2}", fps)
    return path


def _encode(path: Location, frames: Iterable[bytes], size: str, fps: float) -> None:
    """Raw RGB frames through ffmpeg. (imageio_ffmpeg.write_frames does not look at how ffmpeg ended.)"""
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
    except RuntimeError as error:
        raise VideoError(str(error)) from None
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(Fraction(fps).limit_denominator())]
    command += ["-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(CONSTANT_RATE_FACTOR)]
    # faststart: the index comes first, so a browser plays before it has the whole file. The format is named because the
    # temporary path has no .mp4 ending; "file:", since a path may look like a protocol (12:30) or an option (-x).
    command += ["-movflags", "+faststart", "-f", "mp4", f"file:{path.absolute()}"]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as ffmpeg:
            assert ffmpeg.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended early, and says below why
                for frame in frames:
                    ffmpeg.stdin.write(frame)
                ffmpeg.stdin.close()
        if ffmpeg.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines() or [f"status {ffmpeg.returncode}"]
            raise VideoError(f"ffmpeg could not write it: {lines[-1]}")
