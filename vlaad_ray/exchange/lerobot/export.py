"""Writing a LeRobot dataset v3.0, in pieces of some episodes each, side by side.

A piece is a data file, a video of each camera, and last the file with its episodes' metadata: where that is, and was
made of the same, the piece is whole. meta/info.json comes last of all, and goes first when anything is written again:
without it there is no dataset. In memory are one episode's pictures at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlaad_ray import store
from vlaad_ray.configs import ExportDatasetConfig, LeRobotLayout, Location, UserError
from vlaad_ray.exchange.lerobot import layout, stats
from vlaad_ray.exchange.lerobot.columns import add_pictures, columns_of, row_of
from vlaad_ray.exchange.lerobot.pieces import Job, Part, Piece, check_footers, cut
from vlaad_ray.files import descendants, in_parallel, replacing, write_json
from vlaad_ray.runtime import record
from vlaad_ray.runtime.over_episodes import over_pieces
from vlaad_ray.store.parquet import schema_metadata
from vlaad_ray.store.video import VideoError, encoding
from vlaad_ray.summaries import ExportDatasetSummary
from vlaad_ray.types import Embodiment, Episode

FRAMES_BETWEEN_KEYS = 2
"""As LeRobot's own: any frame can be had by decoding two."""


def write(config: ExportDatasetConfig, settings: LeRobotLayout) -> ExportDatasetSummary:
    """Write or complete `config.out`. Raises UserError for data that the format cannot hold."""
    began = time.monotonic()
    if settings.language and config.annotations is None:
        raise UserError("--language needs --annotations DIR: its rows are what the annotations say")
    paths = store.list_episodes(config.data)
    footers = dict(zip(paths, in_parallel(store.read_metadata, paths), strict=True))
    chosen = {path: footer for path, footer in footers.items() if config.failed or footer["success_final"]}
    body = check_footers(config.data, chosen)
    sizes = picture_sizes(next(iter(chosen)), body, settings)
    tasks = tuple(sorted({footer["instruction"] for footer in chosen.values()}))
    video = settings.pictures == "video"
    described = layout.features(
        body, sizes, video, config.annotations is not None, settings.executed, settings.language
    )
    job = Job(config.out, settings, body, described, sizes, tasks)
    pieces = cut(chosen, config.annotations, settings.episodes_per_file)
    former = strays(job, pieces)
    record.write_run_record(config.out, config)
    if former or not all(stored(piece, job) for piece in pieces):
        (config.out / layout.INFO).unlink(missing_ok=True)
    records = list(over_pieces(pieces, functools.partial(write_piece, job=job), "exporting"))
    for path in former:
        path.unlink(missing_ok=True)
    table = layout.tasks_table(tasks)
    with replacing(config.out / layout.TASKS) as temporary:
        pq.write_table(table, temporary.absolute())
    frames = sum(part.steps for piece in pieces for part in piece.parts)
    ordered = sorted(records, key=lambda each: int(each["first"]))
    write_json(
        config.out / layout.STATS,
        stats.plain(stats.of_several([stats.from_plain(each["stats"]) for each in ordered])),
    )
    write_json(config.out / layout.INFO, layout.info(body, described, len(chosen), frames, len(tasks), video))
    return ExportDatasetSummary(
        format="lerobot",
        episodes=len(chosen),
        frames=frames,
        tasks=len(tasks),
        left_out=len(footers) - len(chosen),
        pictures=f"H.264, crf {settings.crf}" if video else "PNG",
        written_before=sum(each["episodes"] for each in records if each["skipped"]),
        seconds=round(time.monotonic() - began, 2),
    )


def picture_sizes(path: Location, body: Embodiment, settings: LeRobotLayout) -> dict[str, tuple[int, int]]:
    """Camera -> (height, width), of an episode's first pictures. Raises UserError for what the format cannot hold."""
    episode = store.read_episode(path)
    sizes = {}
    for camera in body.cameras:
        image = episode.images[camera][0]
        if image is None:
            raise UserError(_unpictured(path, camera, 0))
        height, width, _ = image.shape
        if settings.pictures == "video" and (height % 2 or width % 2):
            raise UserError(f"{camera}: pictures of {width} x {height} do not fit H.264; give --pictures image")
        sizes[camera] = height, width
    return sizes


def made_of(piece: Piece, job: Job) -> str:
    """Changes with whatever a piece is made of: a stored one of the same is left as it is."""
    text = json.dumps(
        [layout.VERSION, asdict(job.settings), job.features, job.tasks, piece.first_episode, piece.first_frame],
        sort_keys=True,
    )
    digest = hashlib.sha256(text.encode())
    for part in piece.parts:
        digest.update(f"\n{part.path.stem} {part.content} {part.labels_content}".encode())
    return digest.hexdigest()


def write_piece(piece: Piece, job: Job) -> dict[str, Any]:
    """In a worker: write a piece, unless it is there. What the whole dataset must know of it."""
    if (known := stored(piece, job)) is not None:
        return {**known, "skipped": True}
    place = job.out / piece.path(layout.EPISODES_PATH)
    place.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    found: list[Mapping[str, stats.Stats]] = []
    schema = layout.schema(job.features)
    with ExitStack() as files:
        data = files.enter_context(replacing(job.out / piece.path(layout.DATA_PATH)))
        films = {
            camera: files.enter_context(_film(job, piece, camera))
            for camera in (job.body.cameras if job.settings.pictures == "video" else ())
        }
        table = files.enter_context(pq.ParquetWriter(data.absolute(), schema, compression="zstd"))
        frame = piece.first_frame
        for number, part in enumerate(piece.parts, start=piece.first_episode):
            episode = read(part, job)
            labels = None if part.labels is None else store.read_annotation(part.labels)
            columns, of_columns = columns_of(episode, labels, number, frame, job)
            add_pictures(episode, job, columns, of_columns, films)
            table.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
            rows.append(row_of(piece, part, episode, number, frame, of_columns, job))
            found.append(of_columns)
            frame += len(episode)
    about = {"first": piece.first_episode, "episodes": len(rows), "stats": stats.plain(stats.of_several(found))}
    metadata = {layout.OURS.encode(): json.dumps({"of": made_of(piece, job), "record": about}).encode()}
    with replacing(place) as temporary:
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), temporary.absolute())
    return {**about, "skipped": False}


def read(part: Part, job: Job) -> Episode:
    """An episode with its pictures. Raises UserError for one that the format cannot hold."""
    episode = store.read_episode(part.path)
    if episode.taught is not None:
        raise UserError(
            f"{part.path}: a student acts in some of its steps, which LeRobot's format cannot tell from a teacher's; "
            "export the rounds before it"
        )
    for camera in job.body.cameras:
        for step, image in enumerate(episode.images[camera]):
            if image is None:
                raise UserError(_unpictured(part.path, camera, step))
            if image.shape[:2] != job.sizes[camera]:
                raise UserError(f"{part.path}: {camera} at step {step} is of another size than the first picture")
    return episode


def _unpictured(path: Location, camera: str, step: int) -> str:
    return (
        f"{path}: no picture of {camera} at step {step}; LeRobot's format needs one at every step: collect with "
        "--image-every 1"
    )


@contextmanager
def _film(job: Job, piece: Piece, camera: str) -> Iterator[Callable[[bytes], object]]:
    """The function that takes the next frame of a camera's video of a piece."""
    place = job.out / piece.path(layout.VIDEO_PATH, layout.picture_key(job.body, camera))
    options = ["-pix_fmt", "yuv420p", "-crf", str(job.settings.crf), "-g", str(FRAMES_BETWEEN_KEYS), "-bf", "0"]
    options += ["-threads", "1"]  # pieces are written side by side
    try:
        with replacing(place) as path, encoding(path, *job.sizes[camera], job.body.rate_hz, options) as write:
            yield write
    except VideoError as failure:
        raise UserError(f"{place}: {failure}") from None


def files_of(piece: Piece, job: Job) -> list[str]:
    """Paths within the dataset, the metadata last."""
    keys = [key for key, of in job.features.items() if of["dtype"] == "video"]
    videos = [piece.path(layout.VIDEO_PATH, key) for key in keys]
    return [piece.path(layout.DATA_PATH), *videos, piece.path(layout.EPISODES_PATH)]


def strays(job: Job, pieces: Sequence[Piece]) -> list[Location]:
    """Files of an earlier run with other settings: loaders take whatever lies there for part of the dataset."""
    wanted = {str(job.out / path) for piece in pieces for path in files_of(piece, job)}
    folders = [job.out / folder for folder in ("data", "videos", layout.EPISODES)]
    found = [path for folder in folders for ending in (".parquet", ".mp4") for path in descendants(folder, ending)]
    return [path for path in found if str(path) not in wanted]


def stored(piece: Piece, job: Job) -> dict[str, Any] | None:
    """What is known of a piece that is whole and was made of the same; None: it is to be written."""
    if not all((job.out / path).exists() for path in files_of(piece, job)):
        return None
    metadata = schema_metadata(job.out / piece.path(layout.EPISODES_PATH))
    about: dict[str, Any] = json.loads(metadata.get(layout.OURS.encode(), b"{}"))
    return about["record"] if about.get("of") == made_of(piece, job) else None
