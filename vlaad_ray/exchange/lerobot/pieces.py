"""Which episodes go into which files of a LeRobot dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import LeRobotLayout, Location, UserError
from vlaad_ray.exchange.lerobot import layout
from vlaad_ray.files import in_parallel
from vlaad_ray.types import Embodiment


@dataclass(frozen=True)
class Part:
    """An episode that is to be written."""

    path: Location
    steps: int
    content: str
    """Hash of its content."""
    labels: Location | None
    labels_content: str
    """Hash of what its annotation says."""


@dataclass(frozen=True)
class Piece:
    """Episodes that share files."""

    number: int
    first_episode: int
    first_frame: int
    parts: tuple[Part, ...]

    def path(self, template: str, video_key: str = "") -> str:
        chunk, file = divmod(self.number, layout.CHUNK)
        return template.format(chunk_index=chunk, file_index=file, video_key=video_key)


@dataclass(frozen=True)
class Job:
    """What all pieces have in common."""

    out: Location
    settings: LeRobotLayout
    body: Embodiment
    features: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, tuple[int, int]]
    """Camera -> (height, width) of its pictures."""
    tasks: tuple[str, ...]
    """Instructions by task_index."""


def check_footers(data: Location, footers: Mapping[Location, Mapping[str, Any]]) -> Embodiment:
    """The robot of all episodes. Raises UserError for none, for several, and for one without cameras."""
    if not footers:
        raise UserError(f"{data} holds no successful episode; give --failed for the others")
    bodies = {store.read_embodiment(footer): path for path, footer in footers.items()}
    if len(bodies) > 1:
        first, second = list(bodies.values())[:2]
        raise UserError(f"{data} mixes robots ({first.name}, {second.name}); keep each in a dataset of its own")
    return next(iter(bodies))


def cut(
    footers: Mapping[Location, Mapping[str, Any]], annotations: Location | None, episodes_per_file: int
) -> list[Piece]:
    """All episodes in their order, in pieces. Raises UserError for one that lacks its annotation."""
    labels = {} if annotations is None else {path.stem: path for path in store.list_annotations(annotations)}
    if annotations is not None and (missing := [path.stem for path in footers if path.stem not in labels]):
        raise UserError(
            f"{annotations} lacks {len(missing)} of the episodes, first {missing[0]}; run jobs/annotate.py again"
        )
    origins: dict[str, str] = {}
    if annotations is not None:
        chosen = [labels[path.stem] for path in footers]
        origins = dict(zip((path.stem for path in footers), in_parallel(_labels_content, chosen), strict=True))
    parts = [
        Part(path, footer["steps"], footer["content_hash"], labels.get(path.stem), origins.get(path.stem, ""))
        for path, footer in footers.items()
    ]
    pieces: list[Piece] = []
    frame = 0
    for number, start in enumerate(range(0, len(parts), episodes_per_file)):
        mine = tuple(parts[start : start + episodes_per_file])
        pieces.append(Piece(number, start, frame, mine))
        frame += sum(part.steps for part in mine)
    return pieces


def _labels_content(path: Location) -> str:
    labels = store.read_annotation(path)
    said = [getattr(labels, field) for field in layout.LABELS.values()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
