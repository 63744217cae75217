"""Reading a LeRobot dataset v3, whoever wrote it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from vlaad_ray import store
from vlaad_ray.configs import ImportDatasetConfig, LeRobotReading, Location, UserError, location
from vlaad_ray.exchange.lerobot import layout
from vlaad_ray.exchange.naming import in_order, renamed
from vlaad_ray.exchange.records import Demonstration, Item, Plan
from vlaad_ray.files import descendants, local_copy, opened, read_json
from vlaad_ray.store.parquet import matrix, reading
from vlaad_ray.store.video import VideoError, frames
from vlaad_ray.types import ACTION_DIM, CONTROL_HZ, PROPRIO_DIM, Embodiment

EPISODES_A_TASK = 20
"""Episodes in the same files are split among tasks from so many on."""
CONVERTED_HZ = 10
"""What openpi's conversion of LIBERO says of its frames, though none was dropped."""


def plan(config: ImportDatasetConfig, reading: LeRobotReading) -> Plan:
    """What the dataset at `config.from_` holds. Raises UserError for none, for an older one, and for one with gaps."""
    root = config.from_
    absent = "give the directory of a LeRobot dataset, the one with meta/ in it"
    info = read_json(root / layout.INFO, absent, "get the dataset again")
    check_version(root, info)
    described: dict[str, dict[str, Any]] = info["features"]
    for needed in (layout.ACTION, "episode_index", "frame_index", "task_index"):
        if needed not in described:
            raise UserError(f"{root} has no feature {needed!r}, without which nothing can be learned from it")
    state = reading.state if reading.state in described else None
    pictures = {key: of for key, of in described.items() if is_picture(of)}
    known = is_libero(described, state, pictures)
    usual = {called: camera for camera, called in layout.LIBERO_CAMERAS.items()} | layout.ALSO_CALLED
    short = {key: key.removeprefix(layout.IMAGES) for key in pictures}
    cameras = renamed(
        config.cameras, {key: usual.get(name, name) if known else name for key, name in short.items()}, short
    )
    gripper = config.gripper if config.gripper is not None else ACTION_DIM - 1 if known else None
    body = Embodiment(
        action_dim=described[layout.ACTION]["shape"][0],
        proprio_dim=described[state]["shape"][0] if state else 0,
        cameras=in_order(cameras.values()),
        rate_hz=config.rate_hz or info["fps"],
        gripper=None if gripper == -1 else gripper,
    )
    notes = _notes(described, {layout.ACTION, state, reading.phase, layout.EXECUTED, *pictures})
    if known and info["fps"] == CONVERTED_HZ and not config.rate_hz:
        notes.append(
            f"its arm is LIBERO's, controlled {CONTROL_HZ} times a second; it says {CONVERTED_HZ}, as openpi's "
            f"conversion does of frames at {CONTROL_HZ}: unless some were dropped give --rate-hz {CONTROL_HZ}"
        )
    instructions = read_tasks(root)
    rows = read_rows(root, info)
    check_files(root, info, rows, [key for key, of in pictures.items() if of["dtype"] == "video"])
    mirrored = [
        of.get("info", {}).get(layout.MIRRORED, known) for of in pictures.values() if of.get("info") is not None
    ]
    flip = "mirror" if (any(mirrored) if mirrored else known) else "none"
    read = functools.partial(
        demonstrations, root=root, info=info, state=state, phase=reading.phase, cameras=cameras, pictures=pictures
    )
    return Plan(
        body=body,
        items=group(rows, instructions, info),
        read=read,
        flip=flip if config.flip == "auto" else config.flip,
        gripper_means="plus_closes" if config.gripper_means == "auto" else config.gripper_means,
        action_range=action_range(root),
        notes=tuple(notes),
    )


def check_version(root: Location, info: Any) -> None:
    version = info.get("codebase_version") if isinstance(info, Mapping) else None
    if not isinstance(version, str):
        raise UserError(f"{root / layout.INFO} is not of a LeRobot dataset: it has no codebase_version")
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobot dataset {version}; v3 is read here: convert it with lerobot's "
            "convert_dataset_v21_to_v30"
        )


def is_picture(feature: Mapping[str, Any]) -> bool:
    depth = (feature.get("info") or {}).get("is_depth_map") or (feature.get("info") or {}).get("video.is_depth_map")
    return feature["dtype"] in ("image", "video") and not depth and feature["shape"][-1] == 3


def is_libero(described: Mapping[str, Any], state: str | None, pictures: Mapping[str, Any]) -> bool:
    """Whether actions, proprioception and cameras are as in LIBERO's datasets on the hub."""
    names = {key.removeprefix(layout.IMAGES) for key in pictures}
    usual = {*layout.LIBERO_CAMERAS, *layout.LIBERO_CAMERAS.values(), *layout.ALSO_CALLED}
    sizes = (list(described[layout.ACTION]["shape"]), list(described[state]["shape"]) if state else [])
    return sizes == ([ACTION_DIM], [PROPRIO_DIM]) and bool(names) and names <= usual


def _notes(described: Mapping[str, Any], used: set[str | None]) -> list[str]:
    left = sorted(set(described) - used - set(layout.FRAME) - {"next.success", "next.done", "next.reward"})
    return [f"features that are left out: {', '.join(left)}"] if left else []


def read_tasks(root: Location) -> dict[int, str]:
    """task_index -> instruction. It is pandas' index, or in older datasets a column."""
    place = root / layout.TASKS
    if not place.is_file():
        raise UserError(f"{place} is missing; get the dataset again")
    with reading(place), opened(place) as file:
        table = pandas.read_parquet(file)
    texts = table["task"] if "task" in table.columns else table.index
    return {int(number): str(text) for number, text in zip(table["task_index"], texts, strict=True)}


def read_rows(root: Location, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metadata of every episode, in order; of its statistics only a hash."""
    rows: list[dict[str, Any]] = []
    for path in descendants(root / layout.EPISODES, ".parquet"):
        with reading(path), opened(path) as file:
            rows += pq.read_table(file).to_pylist()
    rows.sort(key=lambda row: int(row["episode_index"]))
    if [row["episode_index"] for row in rows] != list(range(info["total_episodes"])):
        raise UserError(
            f"{root / layout.EPISODES} tells of {len(rows)} episodes where {layout.INFO} says "
            f"{info['total_episodes']}; get the dataset again"
        )
    for row in rows:
        row["fingerprint"] = hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()
        for name in [name for name in row if name.startswith("stats/")]:
            del row[name]
    return rows


def check_files(root: Location, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], videos: list[str]) -> None:
    """Raises UserError for the first file that episodes lie in and that is not there."""
    wanted = {data_file(info, row) for row in rows} | {video_file(info, row, key) for row in rows for key in videos}
    there = {str(path) for ending in (".parquet", ".mp4") for path in descendants(root, ending)}
    for name in sorted(wanted):
        if str(root / name) not in there:
            raise UserError(f"{root / name} is missing, and episodes lie in it; get the dataset again")


def data_file(info: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    path: str = info["data_path"]
    return path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def video_file(info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> str:
    path: str = info["video_path"]
    chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
    return path.format(video_key=key, chunk_index=chunk, file_index=file)


def group(
    rows: Sequence[Mapping[str, Any]], instructions: Mapping[int, str], info: Mapping[str, Any]
) -> tuple[tuple[Item, ...], ...]:
    """Episodes of the same data file together, at most EPISODES_A_TASK."""
    numbers = {text: number for number, text in instructions.items()}
    together: dict[tuple[str, int], list[Item]] = defaultdict(list)
    files: dict[str, int] = defaultdict(int)
    for row in rows:
        name, instruction = data_file(info, row), row["tasks"][0]
        if instruction not in numbers:
            raise UserError(f"episode {row['episode_index']}: its task {instruction!r} is not in {layout.TASKS}")
        where = {key: value for key, value in row.items() if key not in ("fingerprint", "tasks", layout.OURS)}
        item = Item(
            number=int(row["episode_index"]),
            task=numbers[instruction],
            instruction=instruction,
            fingerprint=row["fingerprint"],
            where=where,
            footer=json.loads(row[layout.OURS]) if row.get(layout.OURS) else {},
        )
        together[name, files[name] // EPISODES_A_TASK].append(item)
        files[name] += 1
    return tuple(tuple(items) for items in together.values())


def action_range(root: Location) -> tuple[np.ndarray, np.ndarray] | None:
    """Least and largest actions, as the dataset's statistics say."""
    if not (root / layout.STATS).exists():
        return None
    of = read_json(root / layout.STATS, broken="get the dataset again").get(layout.ACTION)
    return None if of is None else (np.asarray(of["min"], np.float32), np.asarray(of["max"], np.float32))


def demonstrations(
    items: Sequence[Item],
    root: Location,
    info: Mapping[str, Any],
    state: str | None,
    phase: str,
    cameras: Mapping[str, str],
    pictures: Mapping[str, Mapping[str, Any]],
) -> Iterator[Demonstration]:
    """Episodes that lie in one data file, one after the other. Each file is copied here once, if it is elsewhere."""
    root = location(str(root))
    columns = [layout.ACTION, "frame_index", *([state] if state else [])]
    columns += [name for name in (phase, layout.EXECUTED, "next.success") if name in info["features"]]
    columns += [key for key, of in pictures.items() if of["dtype"] == "image"]
    with ExitStack() as copies:
        local: dict[str, Any] = {}
        for item in items:
            for name in (data_file(info, item.where), *_videos(info, item, pictures)):
                if name not in local:
                    local[name] = copies.enter_context(local_copy(root / name))
            table = read_episode(local[data_file(info, item.where)], root, item, columns)
            images = {}
            for key, of in pictures.items():
                if of["dtype"] == "image":
                    images[cameras[key]] = [_decoded(value, root, item) for value in table[key].to_pylist()]
                else:
                    path = local[video_file(info, item.where, key)]
                    images[cameras[key]] = film(path, item, key, of, info["fps"], table.num_rows)
            success = table["next.success"].to_pylist() if "next.success" in columns else None
            yield Demonstration(
                proprio=numbers(table, state) if state else np.zeros((table.num_rows, 0), np.float32),
                actions=numbers(table, layout.ACTION),
                executed=numbers(table, layout.EXECUTED) if layout.EXECUTED in columns else None,
                phases=tuple(table[phase].to_pylist()) if phase in columns else None,
                images=images,
                success=None if success is None else bool(np.any(success)),
            )


def _videos(info: Mapping[str, Any], item: Item, pictures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [video_file(info, item.where, key) for key, of in pictures.items() if of["dtype"] == "video"]


def read_episode(path: Any, root: Location, item: Item, columns: Sequence[str]) -> pa.Table:
    """Rows of one episode, in order. Raises UserError for more or fewer than its metadata says, or a broken file."""
    said = f"{root}: episode {item.number}"
    try:
        only = [("episode_index", "=", item.number)]
        table = pq.read_table(path.absolute(), columns=list(columns), filters=only, partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{said}: its data file cannot be read ({str(error).splitlines()[0]}); get it again") from None
    table = table.sort_by("frame_index").combine_chunks()
    length = item.where["length"]
    if table["frame_index"].to_pylist() != list(range(length)):
        raise UserError(f"{said} has {table.num_rows} frames where its metadata says {length}; get the dataset again")
    return table


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """[T, N] float32, of a column of vectors or of plain numbers."""
    column = table[name]
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.ascontiguousarray(matrix(table, name), np.float32)
    return column.to_numpy().astype(np.float32)[:, None]


def film(path: Any, item: Item, key: str, of: Mapping[str, Any], fps: float, count: int) -> list[np.ndarray]:
    """An episode's pictures out of a video. Half a frame early, so that rounding loses none."""
    height, width, _ = of["shape"]
    start = max(0.0, item.where[f"videos/{key}/from_timestamp"] - 0.5 / fps)
    try:
        return list(frames(path, start, count, height, width))
    except VideoError as error:
        raise UserError(f"episode {item.number}: {path.name} of {key}: {error}; get the dataset again") from None


def _decoded(value: Mapping[str, Any], root: Location, item: Item) -> np.ndarray:
    if value is None or value["bytes"] is None:
        raise UserError(f"{root}: episode {item.number}: a picture is missing in its data file; get the dataset again")
    try:
        return store.decode_image(value["bytes"])
    except OSError as error:
        raise UserError(f"{root}: episode {item.number}: a picture does not decode ({error})") from None
