"""Where data lies on disk: paths, the Parquet schema, and how a write becomes visible. No other file knows these.

A dataset directory holds one Parquet file an episode, one row a control step (docs/store.md has the columns):

    DIR/episodes/<episode name>.parquet      frames, readable with plain pyarrow.parquet
    DIR/outcomes/<episode name>.json         one small record for every episode that ended, kept or not
    DIR/annotations/<episode name>.parquet   labels, in an annotation directory, a row a frame again
    DIR/answers/<episode name>.parquet       beside them, what a VLM answered, a row a question
    DIR/audit.parquet, DIR/accepted.parquet  every usable answer, audited; those that a person accepted

Files are written under a temporary name and renamed, so a reader never sees half a file; whatever a killed writer
leaves behind starts with a dot and is ignored. All facts about a whole episode lie in the Parquet footer as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlaad_ray.configs import UserError
from vlaad_ray.types import ACTION_DIM, CAMERAS, PROPRIO_DIM, Annotation, Episode, EpisodeKey, InitState

SCHEMA_VERSION = 1
FOOTER_KEY = b"vlaad_ray"
JPEG_QUALITY = 95

EPISODE_SCHEMA = pa.schema(
    [
        ("episode", pa.dictionary(pa.int32(), pa.string())),
        ("suite", pa.dictionary(pa.int32(), pa.string())),
        ("task", pa.int32()),
        ("instruction", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int32()),
        ("proprio", pa.list_(pa.float32(), PROPRIO_DIM)),
        ("action", pa.list_(pa.float32(), ACTION_DIM)),
        ("executed", pa.list_(pa.float32(), ACTION_DIM)),
        ("teacher_phase", pa.string()),
        *((camera, pa.binary()) for camera in CAMERAS),
    ]
)
ANNOTATION_SCHEMA = pa.schema(
    [
        ("episode", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int32()),
        ("phase", pa.string()),
        ("direction", pa.string()),
        ("description", pa.string()),
        ("segment", pa.int32()),
        ("source", pa.string()),
        ("flag", pa.string()),
    ]
)
ANSWER_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("kind", pa.string()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("phase", pa.string()),
        ("frames", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("problem", pa.string()),
        ("attempts", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("generated_tokens", pa.int64()),
    ]
)
AUDIT_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("episode", pa.string()),
        ("suite", pa.string()),
        ("task", pa.int32()),
        ("instruction", pa.string()),
        ("kind", pa.string()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("phase", pa.string()),
        ("frames", pa.list_(pa.int32())),
        ("prompt", pa.string()),
        ("description", pa.string()),
        ("element", pa.string()),
        ("direction", pa.string()),
        ("truth", pa.string()),
        ("direction_seen", pa.string()),
        ("truth_seen", pa.string()),
        ("moved", pa.list_(pa.float64(), 5)),
        ("verdict", pa.string()),
        ("parts", pa.map_(pa.string(), pa.string())),
        ("reason", pa.string()),
        ("decision", pa.string()),
    ]
)
ACCEPTED_SCHEMA = pa.schema(
    [
        AUDIT_SCHEMA.field(name)
        for name in (
            *("request", "episode", "suite", "task", "instruction", "kind", "first", "last", "phase", "frames"),
            *("description", "element", "direction"),
        )
    ]
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
    return path


def cached_arrays(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the .npz file at `path`; if there is none yet, what `make` returns, stored there first.

    `path` must name everything that determines the arrays. Several processes may ask at once: each makes them.
    """
    if not path.exists():
        made = dict(make())
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is corrupt ({error}); delete it: it will be made again") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the job that writes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and rerun the job that writes it") from None


# ---------------------------------------------------------------------------------------------------------- episodes


def encode_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes -> [H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_episode(root: Path, episode: Episode, extra: Mapping[str, Any]) -> Path:
    """Store an episode. `extra` (render mode, versions …) joins the footer beside the episode's own facts."""
    steps = len(episode)
    names = pa.DictionaryArray.from_arrays
    zeros = pa.array(np.zeros(steps, np.int32))
    images = {
        camera: pa.array(
            [None if image is None else encode_jpeg(image) for image in episode.images.get(camera, (None,) * steps)],
            pa.binary(),
        )
        for camera in CAMERAS
    }
    columns = {
        "episode": names(zeros, [episode.key.name]),
        "suite": names(zeros, [episode.key.suite]),
        "task": pa.array(np.full(steps, episode.key.task, np.int32)),
        "instruction": names(zeros, [episode.instruction]),
        "step": pa.array(np.arange(steps, dtype=np.int32)),
        "proprio": _fixed_size(episode.proprio),
        "action": _fixed_size(episode.actions),
        "executed": _fixed_size(episode.executed),
        "teacher_phase": pa.array(list(episode.phases), pa.string()),
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
        "content_hash": content_hash(columns),
        **extra,
    }
    return _write_table(
        root / "episodes" / f"{episode.key.name}.parquet", pa.table(columns, schema=EPISODE_SCHEMA), footer
    )


def copy_with_actions(path: Path, root: Path, actions: np.ndarray, extra: Mapping[str, Any]) -> Path:
    """Store a copy of an episode file under `root` with other `actions` [T, 7] and `extra` in its footer.

    Everything else stays as it is, pictures byte for byte; the content hash is that of the copy.
    """
    footer = _footer(path, "episode")
    table = _read_table(path, EPISODE_SCHEMA.names).cast(EPISODE_SCHEMA)
    columns = {name: table[name].combine_chunks() for name in EPISODE_SCHEMA.names}
    columns["action"] = _fixed_size(actions)
    return _write_table(
        root / "episodes" / path.name,
        pa.table(columns, schema=EPISODE_SCHEMA),
        {**footer, "content_hash": content_hash(columns), **extra},
    )


def content_hash(columns: Mapping[str, pa.Array]) -> str:
    """SHA-256 over the values of every column: equal for equal episodes, whoever wrote them, wherever."""
    digest = hashlib.sha256()
    for name in EPISODE_SCHEMA.names:
        digest.update(name.encode())
        column = columns[name]
        if name in ("proprio", "action", "executed"):
            digest.update(column.flatten().to_numpy().tobytes())
        else:
            for value in column.to_pylist():
                data = value if isinstance(value, bytes) else str(value).encode()
                digest.update(len(data).to_bytes(4, "little") + data)
    return digest.hexdigest()


def list_episodes(root: Path) -> list[Path]:
    """Every episode file of a dataset, by name. An empty or missing dataset is the user's error."""
    return _list(root, "episodes", "collect it with jobs/collect.py")


def read_metadata(path: Path) -> dict[str, Any]:
    """The footer of an episode file: key, instruction, success, render mode, content hash …"""
    return _footer(path, "episode")


def read_episode(path: Path, images: bool = True) -> Episode:
    """Load an episode; images as decoded [H, W, 3] uint8, or none at all with `images=False`."""
    footer = _footer(path, "episode")
    cameras = CAMERAS if images else ()
    table = _read_table(path, ["proprio", "action", "executed", "teacher_phase", *cameras])
    if table.num_rows != footer["steps"]:
        raise _corrupt(path, f"{table.num_rows} rows where its footer says {footer['steps']}")
    return Episode(
        key=read_key(footer["key"]),
        instruction=footer["instruction"],
        proprio=_matrix(table, "proprio"),
        actions=_matrix(table, "action"),
        executed=_matrix(table, "executed"),
        phases=tuple(table["teacher_phase"].to_pylist()),
        images={camera: tuple(_decode_or_none(path, data) for data in table[camera].to_pylist()) for camera in cameras},
        success_step=footer["success_step"],
        success_final=footer["success_final"],
        budget=footer["budget"],
    )


def read_pictures(path: Path, camera: str) -> dict[int, bytes]:
    """Step -> the encoded picture of one camera, where there is one; not decoded, so possibly corrupt."""
    _footer(path, "episode")
    pictures = _read_table(path, [camera])[camera].to_pylist()
    return {step: data for step, data in enumerate(pictures) if data is not None}


def read_key(value: Mapping[str, Any]) -> EpisodeKey:
    return EpisodeKey(**{**value, "init": InitState(**value["init"])})


# ---------------------------------------------------------------------------------------------------------- outcomes


def write_outcome(root: Path, name: str, outcome: Mapping[str, Any]) -> Path:
    """The record that an episode ended. Written last: an episode without it is run again."""
    return write_json(root / "outcomes" / f"{name}.json", dict(outcome))


def read_outcomes(root: Path) -> dict[str, dict[str, Any]]:
    """Episode name -> its outcome."""
    return {path.stem: read_json(path) for path in sorted((root / "outcomes").glob("[!.]*.json"))}


def read_evaluation(root: Path) -> dict[str, dict[str, Any]]:
    """The outcomes that an evaluation's summary speaks of: its folder may hold those of other settings, too."""
    if not (root / "summary.json").exists():
        return {}
    outcomes = read_outcomes(root)
    return {name: outcomes[name] for name in read_json(root / "summary.json")["episodes"]}


# ------------------------------------------------------------------------------------------------------- annotations


def write_annotation(root: Path, annotation: Annotation, provenance: Mapping[str, Any]) -> Path:
    """Store the labels of one episode; `provenance` says which annotator, taxonomy, versions and data made them."""
    steps = len(annotation.phases)
    table = pa.table(
        {
            "episode": pa.DictionaryArray.from_arrays(pa.array(np.zeros(steps, np.int32)), [annotation.episode]),
            "step": pa.array(np.arange(steps, dtype=np.int32)),
            "phase": pa.array(annotation.phases, pa.string()),
            "direction": pa.array(annotation.directions, pa.string()),
            "description": pa.array(annotation.descriptions, pa.string()),
            "segment": pa.array(annotation.segments, pa.int32()),
            "source": pa.array(annotation.sources, pa.string()),
            "flag": pa.array(annotation.flags, pa.string()),
        },
        schema=ANNOTATION_SCHEMA,
    )
    footer = {
        "kind": "annotation",
        "schema_version": SCHEMA_VERSION,
        "episode": annotation.episode,
        "steps": steps,
        "provenance": dict(provenance),
    }
    return _write_table(annotation_path(root, annotation.episode), table, footer)


def annotation_path(root: Path, episode: str) -> Path:
    return root / "annotations" / f"{episode}.parquet"


def list_annotations(root: Path) -> list[Path]:
    return _list(root, "annotations", "make them with jobs/annotate.py")


def read_annotation(path: Path) -> Annotation:
    footer = _footer(path, "annotation")
    table = _read_table(path, ["phase", "direction", "description", "segment", "source", "flag"])
    if table.num_rows != footer["steps"]:
        raise _corrupt(path, f"{table.num_rows} rows where its footer says {footer['steps']}")
    return Annotation(
        episode=footer["episode"],
        phases=tuple(table["phase"].to_pylist()),
        directions=tuple(table["direction"].to_pylist()),
        descriptions=tuple(table["description"].to_pylist()),
        segments=table["segment"].to_numpy(),
        sources=tuple(table["source"].to_pylist()),
        flags=tuple(table["flag"].to_pylist()),
    )


def annotation_provenance(path: Path) -> dict[str, Any]:
    """Who made one annotation file, with what settings."""
    return _footer(path, "annotation")["provenance"]


# ----------------------------------------------------------------------------------------------------- VLM's answers


def answers_path(root: Path, episode: str) -> Path:
    return root / "answers" / f"{episode}.parquet"


def write_answers(root: Path, episode: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Every answer that a VLM gave on an episode, good or not: what it said once need not be asked again."""
    footer = {"kind": "answers", "schema_version": SCHEMA_VERSION, "episode": episode, "steps": len(rows)}
    return _write_table(answers_path(root, episode), pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA), footer)


def read_answers(root: Path, episode: str) -> list[dict[str, Any]]:
    """What write_answers wrote; nothing when it never did. A corrupt file is the user's error."""
    path = answers_path(root, episode)
    if not path.exists():
        return []
    _footer(path, "answers")
    return _read_table(path, ANSWER_SCHEMA.names).to_pylist()


def write_audit(root: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """What the audit says of every answer, in one file."""
    footer = {"kind": "audit", "schema_version": SCHEMA_VERSION, "steps": len(rows)}
    return _write_table(root / "audit.parquet", pa.Table.from_pylist(list(rows), schema=AUDIT_SCHEMA), footer)


def read_audit(root: Path) -> list[dict[str, Any]]:
    path = root / "audit.parquet"
    _footer(path, "audit")
    rows = _read_table(path, AUDIT_SCHEMA.names).to_pylist()
    return [{**row, "parts": dict(row["parts"])} for row in rows]


def write_accepted(root: Path, audited: Sequence[Mapping[str, Any]]) -> Path:
    """The answers that a person accepted, out of rows of AUDIT_SCHEMA: labels to measure other labels by."""
    rows = [row for row in audited if row["decision"] == "accepted"]
    footer = {"kind": "accepted", "schema_version": SCHEMA_VERSION, "steps": len(rows)}
    return _write_table(root / "accepted.parquet", pa.Table.from_pylist(rows, schema=ACCEPTED_SCHEMA), footer)


def read_accepted(root: Path) -> list[dict[str, Any]]:
    path = root / "accepted.parquet"
    _footer(path, "accepted")
    return _read_table(path, ACCEPTED_SCHEMA.names).to_pylist()


# ----------------------------------------------------------------------------------------------------------- Parquet


def _write_table(path: Path, table: pa.Table, footer: Mapping[str, Any]) -> Path:
    table = table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def _footer(path: Path, kind: str) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _corrupt(path, str(error)) from None
    if FOOTER_KEY not in metadata:
        raise UserError(f"{path} was not written by vlaad_ray (no footer of ours); remove it from the directory")
    footer = json.loads(metadata[FOOTER_KEY])
    if footer["kind"] != kind:
        raise UserError(f"{path} holds {footer['kind']}, not {kind}; check the directory you passed")
    if footer["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {footer['schema_version']}, this vlaad_ray reads {SCHEMA_VERSION}; "
            "make the data again or install the version that wrote it"
        )
    return footer


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _corrupt(path, str(error)) from None


def _corrupt(path: Path, why: str) -> UserError:
    first_line = why.splitlines()[0] if why else "unreadable"
    return UserError(f"{path} is corrupt ({first_line}); delete it and rerun the job that wrote it")


def _list(root: Path, folder: str, remedy: str) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a directory; {remedy}")
    paths = sorted((root / folder).glob("[!.]*.parquet"))
    if not paths:
        raise UserError(f"{root} holds no {folder}; {remedy}")
    return paths


def _fixed_size(values: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _decode_or_none(path: Path, data: bytes | None) -> np.ndarray | None:
    if data is None:
        return None
    try:
        return decode_image(data)
    except OSError as error:
        raise _corrupt(path, f"an image does not decode: {error}") from None
