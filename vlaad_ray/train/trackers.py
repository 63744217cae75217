"""The door for trackers: where each epoch's metrics go. metrics.jsonl is always written, --trackers adds others."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaad_ray import plugins, store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import put_all

Record = Mapping[str, Any]
"""An epoch's: numbers, lists of numbers and records of them by name (docs/students.md)."""
Log = Callable[[Record], None]
"""Called with each epoch's record as it ends, in the first worker's process."""


@dataclass(frozen=True)
class Tracker:
    """A kind of log."""

    open: Callable[[Location, Sequence[Record]], Log]
    """(run directory, records of the epochs that a run which is continued has behind it) -> its log."""
    package: str | None = None
    """Module that it needs, to be complained about before any work."""


def find_trackers(names: Sequence[str]) -> tuple[Tracker, ...]:
    """metrics.jsonl's and those named. Raises UserError for one that is unknown or lacks its package."""
    found = {name: plugins.lookup("tracker", TRACKERS, name) for name in ("jsonl", *names)}
    for name, tracker in found.items():
        if tracker.package is not None and importlib.util.find_spec(tracker.package) is None:
            raise UserError(
                f"--trackers {name}: {tracker.package} is not installed here: pip install {tracker.package}"
            )
    return tuple(found.values())


def open_jsonl(out: Location, before: Sequence[Record]) -> Log:
    """OUT/metrics.jsonl, a line an epoch."""
    records = list(before)

    def log(record: Record) -> None:
        """Afresh each time, so that it never holds an epoch twice after a resume."""
        records.append(record)
        with store.replacing(out / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(each, allow_nan=False) + "\n" for each in records))

    return log


def open_tensorboard(out: Location, before: Sequence[Record]) -> Log:
    """OUT/tensorboard, for `tensorboard --logdir`: every number, by epoch. What a killed run wrote beyond is purged."""
    from tensorboardX import SummaryWriter

    place = out / "tensorboard"
    folder = place if isinstance(place, Path) else Path(tempfile.mkdtemp(prefix="vlaad_ray-"))
    writer = SummaryWriter(str(folder), purge_step=len(before) + 1, filename_suffix=f".after{len(before)}")

    def log(record: Record) -> None:
        for name, value in scalars(record):
            writer.add_scalar(name, value, record["epoch"])
        writer.flush()
        if not isinstance(place, Path):
            put_all(folder, place)

    return log


def scalars(record: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a record, by the way to it: train/loss, validation/near_by_phase/grasping."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from scalars({str(index): each for index, each in enumerate(value)}, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


TRACKERS: dict[str, Tracker] = {
    "jsonl": Tracker(open_jsonl),
    "tensorboard": Tracker(open_tensorboard, package="tensorboardX"),
}
"""--trackers -> how it logs. One line makes another."""
