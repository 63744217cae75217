"""ActDistill (arXiv 2511.18082): what each of a teacher's layers knows of the action, and a student that runs fewer.

Stage 1 is --objective probe, which `vlaad probe` runs; stage 2 is --objective actdistill, which `vlaad distil` runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vlaad_ray.configs.distil import ActDistillConfig, HeadsSettings
from vlaad_ray.methods.method import Method


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of one of our modules, imported when it is called: transformers comes with it, which takes seconds."""

    def call(*given: Any) -> Any:
        return getattr(importlib.import_module(f"vlaad_ray.methods.actdistill.{module}"), name)(*given)

    return call


PROBE = Method(
    config=HeadsSettings,
    check=_later("probing", "check"),
    learner=_later("probing", "learner"),
    loss=_later("probing", "loss"),
    parts=("first", "last"),
    leave=_later("kept", "leave"),
)
ACTDISTILL = Method(
    config=ActDistillConfig,
    reads=_later("kept", "reads"),
    check=_later("learner", "check"),
    stored=_later("kept", "columns"),
    phases=True,
    learner=_later("learner", "learner"),
    loss=_later("learner", "loss"),
    parts=("image", "kl", "align", "struct", "act", "budget", "share", "multiplier"),
)
