"""Names, paths and features of a LeRobot dataset v3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vlaad_ray.types import LIBERO, Embodiment

VERSION = "v3.0"
CHUNK = 1000
"""Files in a folder."""
INFO, STATS, TASKS, EPISODES = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = EPISODES + "/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE, ACTION, EXECUTED = "observation.state", "action", "executed_action"
IMAGES = "observation.images."
LANGUAGE = "language_persistent"
LIBERO_CAMERAS = {"agentview": "image", "wrist": "image2"}
"""Camera -> what LIBERO's datasets on the hub call it. Their pictures are turned by 180° against robosuite's, which are
upside down: so ours with left and right changed."""
ALSO_CALLED = {"wrist_image": "wrist"}
"""Further names of LIBERO's cameras, in openpi's conversion."""
FRAME = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
FRAME |= {"task_index": "int64"}
"""Columns that every dataset has, a number each."""
LABELS = {
    "annotation.phase": "phases",
    "annotation.direction": "directions",
    "annotation.description": "descriptions",
}
"""Feature -> field of an Annotation."""
MIRRORED = "mirrored"
"""In a picture feature's `info`: left and right are changed against what the camera saw."""
OURS = "vlaad_ray"
"""Column of an episode's metadata with the footer that it had as ours, and key of a file's with what it was made of."""
STATE_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "finger1", "finger2")
ACTION_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")


def picture_key(body: Embodiment, camera: str) -> str:
    """The feature of a camera's pictures."""
    return IMAGES + (LIBERO_CAMERAS.get(camera, camera) if body == LIBERO else camera)


def features(
    body: Embodiment, sizes: Mapping[str, tuple[int, int]], video: bool, annotated: bool, executed: bool, language: bool
) -> dict[str, dict[str, Any]]:
    """info.json's features, in the order of the columns. `sizes`: camera -> (height, width)."""
    found: dict[str, dict[str, Any]] = {}
    for camera, (height, width) in sizes.items():
        about: dict[str, Any] = {MIRRORED: body == LIBERO}
        if video:
            about |= {"video.height": height, "video.width": width, "video.channels": 3, "video.fps": _rate(body)}
            about |= {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
            about |= {"has_audio": False}
        found[picture_key(body, camera)] = {
            "dtype": "video" if video else "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channel"],
            "info": about,
        }
    arm = body == LIBERO
    if body.proprio_dim:
        found[STATE] = _vector(body.proprio_dim, STATE_NAMES if arm else None)
    found[ACTION] = _vector(body.action_dim, ACTION_NAMES if arm else None)
    if executed:
        found[EXECUTED] = _vector(body.action_dim, ACTION_NAMES if arm else None)
    if annotated:
        found |= {name: {"dtype": "string", "shape": [1], "names": None} for name in LABELS}
    if language:
        found[LANGUAGE] = {"dtype": "language", "shape": [1], "names": None}
    return found | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in FRAME.items()}


def schema(described: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Of a data file."""
    columns = []
    for name, feature in described.items():
        if feature["dtype"] == "image":
            columns.append((name, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        elif feature["dtype"] == "language":
            columns.append((name, pa.list_(LANGUAGE_ROW)))
        elif feature["dtype"] != "video":
            kind = pa.type_for_alias(feature["dtype"])
            columns.append((name, kind if feature["shape"] == [1] else pa.list_(kind, feature["shape"][0])))
    return pa.schema(columns)


LANGUAGE_ROW = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("content", pa.string()),
        pa.field("style", pa.string()),
        pa.field("timestamp", pa.float32()),
        pa.field("camera", pa.string()),
        pa.field("tool_calls", pa.list_(pa.string())),
    ]
)


def info(
    body: Embodiment, described: Mapping[str, Any], episodes: int, frames: int, tasks: int, video: bool
) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "robot_type": "panda" if body == LIBERO else "unknown",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": _rate(body),
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if video else None,
        "features": described,
    }


def tasks_table(instructions: Sequence[str]) -> pa.Table:
    """meta/tasks.parquet: instructions are pandas' index, and so pandas' own metadata says it."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    facts = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "pandas_version": "2.0.0",
    }
    numbers = pa.array(range(len(instructions)), pa.int64())
    table = pa.table({"task_index": numbers, "task": pa.array(list(instructions), pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(facts).encode()})


def _vector(length: int, names: Sequence[str] | None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [length], "names": list(names) if names else None}


def _rate(body: Embodiment) -> int | float:
    return int(body.rate_hz) if float(body.rate_hz).is_integer() else body.rate_hz
