"""Epochs on the screen while they are trained elsewhere: the first worker writes them, the driver reads them.

Through OUT, which all nodes share. Of a worker's own output nothing comes to the screen, since libraries print there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlaad_ray import store
from vlaad_ray.runtime import cli

POLL_S = 0.5


def write_metrics(out: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """metrics.jsonl afresh each epoch, so that it never holds an epoch twice after a resume."""
    with store.replacing(out / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """A record an epoch."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def epochs(out: Path, total: int) -> Iterator[None]:
    """Show the epochs that are trained while the block runs; with the first of them those of before, if it resumes."""
    before, ended = read_metrics(out), threading.Event()
    with cli.progress("train", total, every_line=True) as advance:

        def follow() -> None:
            shown, last = 0, False
            while not last:
                last = ended.wait(POLL_S)
                if (history := read_metrics(out)) != before:
                    for record in history[shown:]:
                        advance(epoch_note(record))
                    shown = max(shown, len(history))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def epoch_note(record: Mapping[str, Any]) -> str:
    """Such as: loss 0.123, near 80.1 %; held out: loss 0.234, near 75.0 %; 640 samples/s."""
    parts = [
        f"{prefix}loss {metrics['loss']:.3f}, near {100 * metrics['near']:.1f} %"
        for prefix, metrics in (("", record["train"]), ("held out: ", record["validation"]))
        if metrics
    ]
    return "; ".join([*parts, f"{record['samples_per_second']:.0f} samples/s"])
