"""Running a student by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
