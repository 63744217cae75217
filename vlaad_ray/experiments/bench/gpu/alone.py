"""A measurement in a process of its own, so that its memory, its first call and its failure are its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURE = (sys.executable, "-m", "vlaad_ray.experiments.bench.gpu.measure")
RAISED = re.compile(r"^(?:error|(?:[\w.]+\.)?\w*(?:Error|Exception|Exit)): .+")
"""How a process says why it failed: a user's error, or the end of a traceback."""
LONGEST = 240
"""Characters of a reason on a page."""


@dataclass(frozen=True)
class Done:
    """What came of it: an answer, or in one line why there is none."""

    answer: Any = None
    problem: str = ""


def run(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    environment: Mapping[str, str | None] | None = None,
    inner: bool = False,
) -> Done:
    """Run `command` with the path of a file, where it puts its answer in JSON, as one more word.

    `log` gets what it prints. After `limit_s` it is killed with all that it has started. `environment`: variables to
    set, or (None) to unset. `inner`: called within a measurement, it ends with that, and must not start others.
    """
    changed: dict[str, str | None] = {**os.environ, **(environment or {})}
    kept = {name: value for name, value in changed.items() if value is not None}
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("w") as printed:
        place = Path(folder) / "answer.json"
        process = subprocess.Popen(
            [*command, str(place)], stdout=printed, stderr=subprocess.STDOUT, env=kept, start_new_session=not inner
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Done(problem=f"took longer than {limit_s:.0f} s")
        finally:
            end(process, inner)
        if process.returncode == 0:
            return Done(json.loads(place.read_text()))
    return Done(problem=reason(log.read_text(errors="replace"), process.returncode))


def end(process: subprocess.Popen[bytes], inner: bool = False) -> None:
    """Kill it; unless `inner` with all that is left of its group, as engines that outlive it hold the GPU's memory."""
    if inner:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(
    kind: str,
    request: Any,
    log: Path,
    limit_s: float,
    environment: Mapping[str, str | None] | None = None,
    inner: bool = False,
) -> Done:
    """Run one of measure.KINDS. `request` is JSON-able."""
    return run((*MEASURE, kind, json.dumps(request)), log, limit_s, environment, inner)


def reason(printed: str, status: int) -> str:
    """Why a process failed, in one line, from what it printed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    said = [line for line in lines if RAISED.match(line)] or lines or [f"exit status {status}"]
    line = said[-1].removeprefix("error: ")
    if "out of memory" in line:
        line = "does not fit the GPU's memory"
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rsplit(' ', 1)[0]} …"
