"""Looking at a machine before work starts there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DoctorConfig:
    """Is this machine ready? A line for each check; what is broken comes with what to do about it."""

    extras: tuple[str, ...] = ("sim", "train")
    """Whose packages must be there: extras of vlaad-ray, as pip takes them (annotate, export, serve, tune, …)."""
    out: Path = Path()
    """Where outputs will be written."""


@dataclass(frozen=True)
class CompletionConfig:
    """The words that Tab completes, for `eval`, or for a file that the shell reads."""

    shell: str = "bash"
    """bash, zsh or tcsh."""
