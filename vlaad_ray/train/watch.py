"""Epochs on the screen while they are trained elsewhere: the first worker writes them, the driver reads them.

Through OUT, which all nodes share. Of a worker's own output nothing comes to the screen, since libraries print there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vlaad_ray import files
from vlaad_ray.configs import Location
from vlaad_ray.runtime import cli

POLL_S, POLL_STORE_S = 0.5, 5.0
"""Between two looks, on a disk and in an object store, where each is a request."""


def read_metrics(out: Location) -> list[dict[str, Any]]:
    """A record an epoch."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in files.read_bytes(path).decode().splitlines()] if path.exists() else []


@contextmanager
def epochs(out: Location, total: int) -> Iterator[None]:
    """Show the epochs that are trained while the block runs; with the first of them those of before, if it resumes."""
    before, ended = read_metrics(out), threading.Event()
    pause = POLL_S if isinstance(out, Path) else POLL_STORE_S
    with cli.progress("train", total, every_line=True) as advance, ExitStack() as after:

        def follow() -> None:
            shown, last = 0, False
            while not last:
                last = ended.wait(pause)
                if (history := read_metrics(out)) != before:
                    for record in history[shown:]:
                        advance(epoch_note(record))
                    shown = max(shown, len(history))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        after.callback(follower.join)
        after.callback(ended.set)  # before that
        yield


def epoch_note(record: Mapping[str, Any]) -> str:
    """Such as: loss 0.123, near 80.1 %; held out: loss 0.234, near 75.0 %; 640 samples/s."""
    parts = [
        f"{prefix}loss {metrics['loss']:.3f}, near {100 * metrics['near']:.1f} %"
        for prefix, metrics in (("", record["train"]), ("held out: ", record["validation"]))
        if metrics
    ]
    return "; ".join([*parts, f"{record['samples_per_second']:.0f} samples/s"])
