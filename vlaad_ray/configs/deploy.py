"""Running a student by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ExportConfig:
    """Turn a checkpoint into a policy for ONNX Runtime or OpenVINO, and compare it with torch on real frames.

    An export that doesn't agree is an error and does not load.
    """

    checkpoint: Path
    """Checkpoint directory, as jobs/train.py wrote it."""
    data: Path
    """Dataset directory, as jobs/collect.py wrote it: frames to compare on, and others to calibrate int8."""
    out: Path
    """Where the exported policy goes, with summary.json."""
    backend: Literal["onnx", "openvino"] = "openvino"
    precision: Literal["fp32", "bf16", "int8"] = "bf16"
    """Of the weights and the arithmetic; the last layers, which decide on the bins, stay fp32. onnx: fp32 only."""
    frames: int = 512
    """Frames on which torch (fp32) and the export must agree."""
    calibration: int = 256
    """Frames, of other episodes, from which int8 takes its ranges."""
    bar: float = 0.0
    """Least share of likeliest bins, and of gripper commands, that must be the same; 0: 0.99, for int8 0.75 (its
    rounding moves many a close call by a bin; what counts is success in closed loop, jobs/eval.py --compare-to)."""


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained student over openpi's websocket protocol. No Ray, no LIBERO."""

    checkpoint: Path
    """Checkpoint directory, as jobs/train.py wrote it."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: keep it private."""
    port: int = 8000
    """0: any free one."""
    device: str = "cpu"
    """torch device."""
    dtype: Literal["bf16", "fp32"] = "fp32"
