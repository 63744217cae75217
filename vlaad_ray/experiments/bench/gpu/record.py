"""One measurement as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """What was asked, what came of it, where."""

    name: str
    request: dict[str, Any]
    machine: dict[str, Any]
    """GPU, driver, CPU, versions, git revision."""
    seconds: float
    """Its process's start and all."""
    answer: dict[str, Any] | None = None
    problem: str = ""
    """Why there is no answer, in one line."""

    @property
    def section(self) -> str:
        return self.name.partition("-")[0]
