"""What an episode of ours is in a LeRobot dataset: rows of a data file, pictures, statistics, its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vlaad_ray import store
from vlaad_ray.configs import UserError
from vlaad_ray.exchange.lerobot import layout, stats
from vlaad_ray.exchange.lerobot.pieces import Job, Part, Piece
from vlaad_ray.store.parquet import fixed_size
from vlaad_ray.types import Annotation, Episode


def columns_of(
    episode: Episode, labels: Annotation | None, number: int, frame: int, job: Job
) -> tuple[dict[str, Any], dict[str, stats.Stats]]:
    """What a data file has of an episode but for its pictures, and the statistics of what is numbers."""
    steps = np.arange(len(episode))
    numbers = {
        layout.STATE: episode.proprio,
        layout.ACTION: episode.actions,
        layout.EXECUTED: episode.executed,
        "timestamp": (steps / job.body.rate_hz).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(episode), number),
        "index": frame + steps,
        "task_index": np.full(len(episode), job.tasks.index(episode.instruction)),
    }
    numbers = {name: values for name, values in numbers.items() if name in job.features}
    columns: dict[str, Any] = {
        name: pa.array(values) if values.ndim == 1 else fixed_size(values) for name, values in numbers.items()
    }
    if labels is not None:
        if len(labels.phases) != len(episode):
            raise UserError(f"annotation of {labels.episode}: {len(labels.phases)} rows for {len(episode)} steps")
        columns |= {name: pa.array(getattr(labels, field), pa.string()) for name, field in layout.LABELS.items()}
        if layout.LANGUAGE in job.features:
            rows = language_rows(labels, job.body.rate_hz)
            columns[layout.LANGUAGE] = pa.array([rows] * len(episode), pa.list_(layout.LANGUAGE_ROW))
    return columns, {name: stats.of_numbers(values) for name, values in numbers.items()}


def language_rows(labels: Annotation, rate_hz: float) -> list[dict[str, Any]]:
    """LeRobot's persistent rows: what is done (subtask) and how (motion), from when on it is so."""
    rows: list[dict[str, Any]] = []
    for style, texts in (("subtask", labels.descriptions), ("motion", labels.directions)):
        for step, text in enumerate(texts):
            if step == 0 or text != texts[step - 1]:
                rows.append({"role": "assistant", "content": text, "style": style, "timestamp": step / rate_hz})
    return sorted(rows, key=lambda row: (row["timestamp"], row["style"]))


def add_pictures(
    episode: Episode,
    job: Job,
    columns: dict[str, Any],
    of_columns: dict[str, stats.Stats],
    films: Mapping[str, Callable[[bytes], object]],
) -> None:
    """Into the videos, or into `columns`; and their statistics."""
    for camera in job.body.cameras:
        key, sampled = layout.picture_key(job.body, camera), set(stats.sampled(len(episode)))
        mirrored = job.features[key]["info"][layout.MIRRORED]
        counts = np.zeros((3, 256), np.int64)
        encoded = []
        for step, image in enumerate(episode.images[camera]):
            assert image is not None, "read() has looked"
            shown = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
            if step in sampled:
                counts += [np.bincount(shown[..., channel].ravel(), minlength=256) for channel in range(3)]
            if camera in films:
                films[camera](shown.tobytes())
            else:
                encoded.append({"bytes": store.encode_png(shown), "path": f"frame-{step:06d}.png"})
        if camera not in films:
            columns[key] = pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        of_columns[key] = stats.of_pictures(counts, len(sampled))


def row_of(
    piece: Piece, part: Part, episode: Episode, number: int, frame: int, found: Mapping[str, stats.Stats], job: Job
) -> dict[str, Any]:
    """An episode's metadata."""
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.instruction],
        "length": len(episode),
        "dataset_from_index": frame,
        "dataset_to_index": frame + len(episode),
    }
    chunk, file = divmod(piece.number, layout.CHUNK)
    for folder in ("data", "meta/episodes"):
        row |= {f"{folder}/chunk_index": chunk, f"{folder}/file_index": file}
    for key, feature in job.features.items():
        if feature["dtype"] == "video":
            start = (frame - piece.first_frame) / job.body.rate_hz
            row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file}
            row |= {
                f"videos/{key}/from_timestamp": start,
                f"videos/{key}/to_timestamp": start + len(episode) / job.body.rate_hz,
            }
    row[layout.OURS] = json.dumps(store.read_metadata(part.path))
    return row | {f"stats/{name}/{key}": value for name, of in stats.plain(found).items() for key, value in of.items()}
