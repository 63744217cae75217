"""From stored episodes and annotations to frames in memory that a student trains on.

`episode_frames` decodes one episode; `Frames` holds what a worker trains on. Training only: a deployed policy never
imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.methods.method import Columns, no_columns
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.models.student.preprocess import chunk_targets, stack_cameras
from vlaad_ray.train.survey import EpisodeSource, are_texts, phases_of
from vlaad_ray.types import Annotation, Episode

OWN = "own/"
"""Before the names of a method's columns, among those of every frame."""
ColumnsOf = Callable[[Episode, Annotation | None], Columns]
"""Method.columns."""


def episode_frames(
    source: EpisodeSource,
    texts: Mapping[str, int],
    phases: Mapping[str, int],
    config: StudentConfig,
    columns: ColumnsOf = no_columns,
    cache: Location | None = None,
) -> dict[str, np.ndarray]:
    """One episode -> the columns of Frames for its F <= T frames that have all the images, decoded or from `cache`."""
    place = cache / f"{source.content}-{'-'.join(config.cameras)}-{config.image_size}.npz" if cache else None
    decode = place is None or not place.exists()
    episode = store.read_episode(source.path, images=config.cameras if decode else ())
    annotation = store.read_annotation(source.annotation) if source.annotation else None
    if place is None:
        pictures = episode_pictures(episode, config)
    else:
        pictures = store.cached_arrays(place, lambda: episode_pictures(episode, config))
    steps = pictures["steps"]
    labels = phases_of(episode, annotation)
    own = {OWN + name: _numbers(values, texts)[steps] for name, values in columns(episode, annotation).items()}
    return {
        "images": pictures["images"],
        "proprio": episode.proprio[steps].astype(np.float32),
        "actions": chunk_targets(episode.actions, config.chunk)[steps],
        "instruction": np.full(len(steps), texts[episode.instruction], np.int32),
        "phase": np.array([phases[label] for label in labels], np.int32)[steps],
        "episode": np.full(len(steps), source.number, np.int32),
        "step": steps,
        "held_out": np.full(len(steps), source.held_out),
        **own,
    }


def _numbers(values: Sequence[str] | np.ndarray, texts: Mapping[str, int]) -> np.ndarray:
    """A method's column: texts by their index."""
    return np.array([texts[text] for text in values], np.int32) if are_texts(values) else np.asarray(values)


def episode_pictures(episode: Episode, config: StudentConfig) -> dict[str, np.ndarray]:
    """An episode -> `images` [F, C, S, S, 3] uint8 as the student sees them, and their `steps` [F] int32.

    Steps at which a student acted without its teacher are left out.
    """
    steps, pictures = [], []
    for step in range(len(episode)) if episode.taught is None else np.flatnonzero(episode.taught).tolist():
        images = {name: image for name, seen in episode.images.items() if (image := seen[step]) is not None}
        if images.keys() >= set(config.cameras):
            steps.append(step)
            pictures.append(stack_cameras(images, config.cameras, config.image_size))
    no_pictures = np.empty((0, len(config.cameras), config.image_size, config.image_size, 3), np.uint8)
    return {"images": np.stack(pictures) if pictures else no_pictures, "steps": np.array(steps, np.int32)}


@dataclass(frozen=True)
class Frames:
    """A worker's share of the data, N frames in memory, as uint8 pictures: decoding once beats decoding every epoch."""

    images: np.ndarray
    """[N, C, S, S, 3] uint8."""
    proprio: np.ndarray
    """[N, proprio_dim] float32."""
    actions: np.ndarray
    """[N, K, A] float32: what the teacher asked for from this frame on."""
    instruction: np.ndarray
    """[N] index into the texts."""
    phase: np.ndarray
    """[N] index into the phases."""
    training: np.ndarray
    """Indices of the frames to train on, in an order that doesn't depend on how they arrived."""
    validation: np.ndarray
    """Indices of the held-out frames, likewise."""
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The method's columns: [N] indices into the texts, or [N, …] numbers."""


def gather(batches: Iterable[Mapping[str, np.ndarray]], capacity: int) -> Frames:
    """Copy batches of `episode_frames` columns into one place. `capacity` bounds N; unused memory is never touched."""
    columns: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        size = len(batch["step"])
        for name, values in batch.items():
            if name not in columns:
                columns[name] = np.empty((capacity, *values.shape[1:]), values.dtype)
            columns[name][count : count + size] = values
        count += size
    if not count:
        raise UserError("no frame has images from every camera the student uses; collect with cameras on")
    columns = {name: values[:count] for name, values in columns.items()}
    order = np.lexsort((columns["step"], columns["episode"]))
    held_out = columns.pop("held_out")[order]
    del columns["step"], columns["episode"]
    own = {name.removeprefix(OWN): columns.pop(name) for name in list(columns) if name.startswith(OWN)}
    return Frames(**columns, training=order[~held_out], validation=order[held_out], own=own)
