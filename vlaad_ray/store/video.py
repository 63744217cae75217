"""Pictures into a video and out of it, one at a time, through ffmpeg (imageio-ffmpeg brings it)."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np


class VideoError(Exception):
    """A video that could not be written or read. Its text says why, in one line."""


@contextlib.contextmanager
def encoding(
    path: Path, height: int, width: int, fps: float, options: Sequence[str]
) -> Iterator[Callable[[bytes], object]]:
    """A function that takes the next frame, [height, width, 3] uint8 as bytes; they become `path`, H.264 in MP4.

    `options` are x264's, as ffmpeg takes them. Raises VideoError when ffmpeg fails. (imageio_ffmpeg.write_frames does
    not look at how ffmpeg ended.)
    """
    command = [*_ffmpeg(), "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(Fraction(fps).limit_denominator()), "-i", "-", "-an", "-c:v", "libx264", *options]
    # faststart: the index comes first, so a browser plays before it has the whole file. The format is named because the
    # temporary path has no .mp4 ending; "file:", since a path may look like a protocol (12:30) or an option (-x).
    command += ["-movflags", "+faststart", "-f", "mp4", f"file:{path.absolute()}"]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as ffmpeg:
            assert ffmpeg.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended early, and says below why
                yield ffmpeg.stdin.write
                ffmpeg.stdin.close()
        if ffmpeg.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines() or [f"status {ffmpeg.returncode}"]
            raise VideoError(f"ffmpeg could not write it: {lines[-1]}")


def frames(path: Path, start: float, count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """The first `count` frames, [height, width, 3] uint8, that are shown at `start` seconds or later.

    Any codec that ffmpeg knows; AV1 and H.264 among them. Raises VideoError for a file with fewer.
    """
    command = [*_ffmpeg(), "-threads", "1", "-ss", f"{start:.6f}", "-i", f"file:{path.absolute()}"]
    command += ["-frames:v", str(count), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    size = height * width * 3
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as ffmpeg,
    ):
        assert ffmpeg.stdout is not None
        for number in range(count):
            data = ffmpeg.stdout.read(size)
            if len(data) < size:
                said.seek(0)
                lines = said.read().decode(errors="replace").splitlines()
                why = f"; ffmpeg says: {lines[-1]}" if lines else ""
                raise VideoError(f"{number} of {count} frames from {start:.2f} s on can be read{why}")
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _ffmpeg() -> list[str]:
    try:
        return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    except RuntimeError as error:
        raise VideoError(str(error)) from None
