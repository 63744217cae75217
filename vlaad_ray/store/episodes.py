"""Episodes, one file each, and a small record of every one that ended."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import children
from vlaad_ray.store.parquet import (
    SCHEMA_VERSION,
    corrupt,
    count_values,
    fixed_size,
    list_tables,
    matrix,
    opened_table,
    read_footer,
    write_table,
)
from vlaad_ray.types import LIBERO, Embodiment, Episode, EpisodeKey, InitState

JPEG_QUALITY = 95
TAUGHT = "taught"
"""The column that only episodes have in which a student acts."""


def episode_schema(embodiment: Embodiment, student_acts: bool = False) -> pa.Schema:
    """Columns of an episode's table: a row a control step, a column a camera.

    `student_acts`: with a column that tells the steps whose action is the teacher's from those of a student.
    """
    return pa.schema(
        [
            ("episode", pa.dictionary(pa.int32(), pa.string())),
            ("suite", pa.dictionary(pa.int32(), pa.string())),
            ("task", pa.int32()),
            ("instruction", pa.dictionary(pa.int32(), pa.string())),
            ("step", pa.int32()),
            *([("proprio", pa.list_(pa.float32(), embodiment.proprio_dim))] if embodiment.proprio_dim else []),
            ("action", pa.list_(pa.float32(), embodiment.action_dim)),
            ("executed", pa.list_(pa.float32(), embodiment.action_dim)),
            ("teacher_phase", pa.string()),
            *([(TAUGHT, pa.bool_())] if student_acts else []),
            *((camera, pa.binary()) for camera in embodiment.cameras),
        ]
    )


class Survey(NamedTuple):
    """What there is to know of an episode without looking at its pictures."""

    episode: Episode
    """Without images."""
    pictures: Mapping[str, int]
    """Camera -> at how many steps it has a picture."""


EPISODE_SCHEMA = episode_schema(LIBERO)


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes -> [H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_episode(
    root: Location, episode: Episode, extra: Mapping[str, Any], encode: Callable[[np.ndarray], bytes] = encode_jpeg
) -> Location:
    """Store an episode. `extra` (render mode, versions …) joins the footer beside the episode's own facts.

    Raises UserError for one without steps, or with a number that is none: nothing could be learned from it.
    """
    if (trouble := unusable(episode.proprio, episode.actions, episode.executed)) is not None:
        raise UserError(f"episode {episode.key.name} is not stored: {trouble}")
    steps = len(episode)
    names = pa.DictionaryArray.from_arrays
    zeros = pa.array(np.zeros(steps, np.int32))
    images = {
        camera: pa.array(
            [None if image is None else encode(image) for image in episode.images.get(camera, (None,) * steps)],
            pa.binary(),
        )
        for camera in episode.embodiment.cameras
    }
    columns = {
        "episode": names(zeros, [episode.key.name]),
        "suite": names(zeros, [episode.key.suite]),
        "task": pa.array(np.full(steps, episode.key.task, np.int32)),
        "instruction": names(zeros, [episode.instruction]),
        "step": pa.array(np.arange(steps, dtype=np.int32)),
        **({"proprio": fixed_size(episode.proprio)} if episode.embodiment.proprio_dim else {}),
        "action": fixed_size(episode.actions),
        "executed": fixed_size(episode.executed),
        "teacher_phase": pa.array(list(episode.phases), pa.string()),
        **({} if episode.taught is None else {TAUGHT: pa.array(episode.taught, pa.bool_())}),
        **images,
    }
    footer = {
        "kind": "episode",
        "schema_version": SCHEMA_VERSION,
        "key": asdict(episode.key),
        "instruction": episode.instruction,
        "steps": steps,
        "success_step": episode.success_step,
        "success_ever": episode.success_ever,
        "success_final": episode.success_final,
        "budget": episode.budget,
        "embodiment": asdict(episode.embodiment),
        "content_hash": content_hash(columns),
        **extra,
    }
    table = pa.table(columns, schema=episode_schema(episode.embodiment, episode.taught is not None))
    return write_table(root / "episodes" / f"{episode.key.name}.parquet", table, footer)


def copy_with_actions(path: Location, root: Location, actions: np.ndarray, extra: Mapping[str, Any]) -> Location:
    """Store a copy of an episode file under `root` with other `actions` [T, 7] and `extra` in its footer.

    Everything else stays as it is, pictures byte for byte; the content hash is that of the copy.
    """
    with opened_table(path, "episode") as (footer, file):
        schema = episode_schema(read_embodiment(footer), TAUGHT in file.schema_arrow.names)
        table = file.read(columns=schema.names).cast(schema)
    proprio = matrix(table, "proprio") if "proprio" in schema.names else np.zeros((table.num_rows, 0), np.float32)
    if (trouble := unusable(proprio, actions, matrix(table, "executed"))) is not None:
        raise UserError(f"episode {path.stem} is not copied: {trouble}")
    columns = {name: table[name].combine_chunks() for name in schema.names}
    columns["action"] = fixed_size(actions)
    return write_table(
        root / "episodes" / path.name,
        pa.table(columns, schema=schema),
        {**footer, "content_hash": content_hash(columns), **extra},
    )


def unusable(proprio: np.ndarray, actions: np.ndarray, executed: np.ndarray) -> str | None:
    """What makes an episode [T, …] one that nothing can be learned from; None for a sound one."""
    if not len(actions):
        return "it has no steps"
    for name, values in (("proprio", proprio), ("action", actions), ("executed", executed)):
        if not (finite := np.isfinite(values).all(axis=1)).all():
            step = int(np.argmin(finite))
            return f"{name} at step {step} is {values[step].tolist()}"
    return None


def content_hash(columns: Mapping[str, pa.Array]) -> str:
    """SHA-256 over the values of every column: equal for equal episodes, whoever wrote them, wherever."""
    digest = hashlib.sha256()
    for name in columns:
        digest.update(name.encode())
        column = columns[name]
        if name in ("proprio", "action", "executed"):
            digest.update(column.flatten().to_numpy().tobytes())
        else:
            for value in column.to_pylist():
                data = value if isinstance(value, bytes) else str(value).encode()
                digest.update(len(data).to_bytes(4, "little") + data)
    return digest.hexdigest()


def list_episodes(root: Location) -> list[Location]:
    """Every episode file of a dataset, by name. An empty or missing dataset is the user's error."""
    return list_tables(root, "episodes", "collect it with jobs/collect.py")


def stored_episodes(root: Location) -> set[str]:
    """Names of the episodes that a dataset holds, possibly none."""
    return {path.stem for path in children(root / "episodes", ".parquet")}


def read_metadata(path: Location) -> dict[str, Any]:
    """The footer of an episode file: key, instruction, success, render mode, content hash …"""
    return read_footer(path, "episode")


def read_episode(path: Location, images: bool | Sequence[str] = True) -> Episode:
    """Load an episode; images as decoded [H, W, 3] uint8: of all cameras, of those named, or none at all.

    Raises UserError for a file that is corrupt, a number that is none included.
    """
    with opened_table(path, "episode") as (footer, file):
        cameras = read_embodiment(footer).cameras if images is True else images or ()
        return _episode(path, footer, file, cameras)


def survey_episode(path: Location, wanted: Callable[[Mapping[str, Any]], bool]) -> tuple[dict[str, Any], Survey | None]:
    """The footer of an episode file, and what else there is to know of a wanted one. Opens it once."""
    with opened_table(path, "episode") as (footer, file):
        if not wanted(footer):
            return footer, None
        cameras = read_embodiment(footer).cameras
        return footer, Survey(
            _episode(path, footer, file, ()), {camera: count_values(file, camera) for camera in cameras}
        )


def _episode(path: Location, footer: dict[str, Any], file: pq.ParquetFile, cameras: Sequence[str]) -> Episode:
    felt = read_embodiment(footer).proprio_dim > 0
    mixed = TAUGHT in file.schema_arrow.names
    columns = [*["proprio"] * felt, "action", "executed", "teacher_phase", *[TAUGHT] * mixed, *cameras]
    table = file.read(columns=columns)
    if table.num_rows != footer["steps"]:
        raise corrupt(path, f"{table.num_rows} rows where its footer says {footer['steps']}")
    proprio = matrix(table, "proprio") if felt else np.zeros((table.num_rows, 0), np.float32)
    actions, executed = matrix(table, "action"), matrix(table, "executed")
    if (trouble := unusable(proprio, actions, executed)) is not None:
        raise corrupt(path, trouble)
    return Episode(
        key=read_key(footer["key"]),
        instruction=footer["instruction"],
        proprio=proprio,
        actions=actions,
        executed=executed,
        phases=tuple(table["teacher_phase"].to_pylist()),
        images={camera: tuple(_decode_or_none(path, data) for data in table[camera].to_pylist()) for camera in cameras},
        success_step=footer["success_step"],
        success_final=footer["success_final"],
        budget=footer["budget"],
        embodiment=read_embodiment(footer),
        taught=table[TAUGHT].to_numpy() if mixed else None,
    )


def read_pictures(path: Location) -> dict[int, bytes]:
    """Step -> the encoded picture of the first camera, where there is one; not decoded, so possibly corrupt."""
    with opened_table(path, "episode") as (footer, file):
        camera = read_embodiment(footer).cameras[0]
        pictures = file.read(columns=[camera])[camera].to_pylist()
    return {step: data for step, data in enumerate(pictures) if data is not None}


def read_embodiment(footer: Mapping[str, Any]) -> Embodiment:
    """Of an episode's footer. Footers without a word on it are of before there was a choice."""
    if "embodiment" not in footer:
        return LIBERO
    return Embodiment(**{**footer["embodiment"], "cameras": tuple(footer["embodiment"]["cameras"])})


def read_key(value: Mapping[str, Any]) -> EpisodeKey:
    return EpisodeKey(**{**value, "init": InitState(**value["init"])})


def _decode_or_none(path: Location, data: bytes | None) -> np.ndarray | None:
    if data is None:
        return None
    try:
        return decode_image(data)
    except OSError as error:
        raise corrupt(path, f"an image does not decode: {error}") from None
