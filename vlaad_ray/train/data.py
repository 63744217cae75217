"""From stored episodes and annotations to frames in memory that a student trains on.

`survey` looks at the whole dataset without its pictures; `episode_frames` decodes one episode; `Frames` holds what a
worker trains on. Training only: a deployed policy never imports this.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import in_parallel
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.models.student.preprocess import actions_to_bins, chunk_targets, stack_cameras
from vlaad_ray.types import Episode

MIN_PROPRIO_STD = 5e-3
"""Metres or radians: an input that hardly varies in the data is not blown up."""
NO_PHASE = "unknown"


@dataclass(frozen=True)
class EpisodeSource:
    """One episode to train on."""

    number: int
    path: Location
    annotation: Location | None
    steps: int
    held_out: bool


@dataclass(frozen=True)
class Survey:
    """What must be known of a dataset before its pictures are read."""

    sources: tuple[EpisodeSource, ...]
    texts: tuple[str, ...]
    """Distinct instructions and descriptions, and directions if asked for; frames refer to them by index."""
    phases: tuple[str, ...]
    proprio_mean: np.ndarray
    """[8]"""
    proprio_std: np.ndarray
    """[8]"""
    fingerprint: str
    """Changes with the content of any episode or annotation used."""
    provenance: dict[str, Any]
    """For the checkpoint: what it was trained on, in words and numbers."""

    @property
    def steps(self) -> int:
        return sum(source.steps for source in self.sources)


def survey(
    data: Location, annotations: Location | None, validation_fraction: float, directions: bool = False
) -> Survey:
    """Read everything but images. Only episodes that ever succeeded count; if asked for, each must be annotated.

    `directions`: their texts are trained on too.
    """
    paths = store.list_episodes(data)
    footers = dict(zip(paths, in_parallel(store.read_metadata, paths), strict=True))
    successes = {path: footer for path, footer in footers.items() if footer["success_final"]}
    if not successes:
        raise UserError(f"{data} holds no successful episode ({len(footers)} failed ones); collect more")
    labels = _annotations_of(successes, annotations) if annotations else {}
    held_out = _held_out(successes, validation_fraction)
    # Ordered by hash, so that tasks are mixed and every worker's share holds all of them.
    order = sorted(successes, key=lambda path: _hash(path.stem))

    annotated = dict(zip(labels, in_parallel(store.read_annotation, labels.values()), strict=True))
    texts, phases, proprio = set[str](), set[str](), []
    sources = []
    digest = hashlib.sha256()
    for number, (path, episode) in enumerate(zip(order, in_parallel(_without_images, order), strict=True)):
        texts.add(episode.instruction)
        proprio.append(episode.proprio)
        digest.update(f"{path.stem} {successes[path]['content_hash']}\n".encode())
        if path in labels:
            annotation = annotated[path]
            if len(annotation.phases) != len(episode):
                raise UserError(
                    f"{labels[path]} has {len(annotation.phases)} rows, its episode {len(episode)} steps; "
                    "run jobs/annotate.py again"
                )
            texts.update(annotation.descriptions)
            phases.update(annotation.phases)
            digest.update("\n".join(annotation.descriptions).encode())
            if directions:
                texts.update(annotation.directions)
                digest.update("\n".join((*annotation.directions, *annotation.phases)).encode())
        else:
            phases.update(phase or NO_PHASE for phase in episode.phases)
        sources.append(EpisodeSource(number, path, labels.get(path), len(episode), path in held_out))
    stacked = np.concatenate([values for values, source in zip(proprio, sources, strict=True) if not source.held_out])
    return Survey(
        sources=tuple(sources),
        texts=tuple(sorted(texts)),
        phases=tuple(sorted(phases)),
        proprio_mean=stacked.mean(0),
        proprio_std=np.maximum(stacked.std(0), MIN_PROPRIO_STD),
        fingerprint=digest.hexdigest()[:16],
        provenance=_provenance(data, annotations, successes, labels),
    )


def episode_frames(
    source: EpisodeSource,
    texts: Mapping[str, int],
    phases: Mapping[str, int],
    config: StudentConfig,
    cache: Location | None = None,
) -> dict[str, np.ndarray]:
    """One episode -> the columns of Frames for its F <= T frames that have all the images, decoded or from `cache`."""
    episode = store.read_episode(source.path, images=False)
    annotation = store.read_annotation(source.annotation) if source.annotation else None
    if cache is None:
        pictures = episode_pictures(source.path, config)
    else:
        # The content hash is over the encoded pictures, too.
        content = store.read_metadata(source.path)["content_hash"]
        name = f"{content}-{'-'.join(config.cameras)}-{config.image_size}.npz"
        pictures = store.cached_arrays(cache / name, lambda: episode_pictures(source.path, config))
    steps = pictures["steps"]
    targets = actions_to_bins(chunk_targets(episode.actions, config.chunk), config.bins)[steps]
    labels = annotation.phases if annotation else tuple(phase or NO_PHASE for phase in episode.phases)
    descriptions = [texts[text] for text in annotation.descriptions] if annotation else [-1] * len(episode)
    directions = [texts.get(text, -1) for text in annotation.directions] if annotation else [-1] * len(episode)
    return {
        "images": pictures["images"],
        "proprio": episode.proprio[steps].astype(np.float32),
        "targets": targets.astype(np.int16),
        "instruction": np.full(len(steps), texts[episode.instruction], np.int32),
        "description": np.array(descriptions, np.int32)[steps],
        "direction": np.array(directions, np.int32)[steps],
        "phase": np.array([phases[label] for label in labels], np.int32)[steps],
        "episode": np.full(len(steps), source.number, np.int32),
        "step": steps,
        "held_out": np.full(len(steps), source.held_out),
    }


def episode_pictures(path: Location, config: StudentConfig) -> dict[str, np.ndarray]:
    """Decode one episode -> `images` [F, C, S, S, 3] uint8 as the student sees them, and their `steps` [F] int32."""
    episode = store.read_episode(path)
    steps, pictures = [], []
    for step in range(len(episode)):
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
    """[N, 8] float32."""
    targets: np.ndarray
    """[N, K, 7] int16 bins."""
    instruction: np.ndarray
    """[N] index into the texts."""
    description: np.ndarray
    """[N] index into the texts, -1 where there is none."""
    direction: np.ndarray
    """[N] likewise; -1 everywhere unless the objective asks for directions."""
    phase: np.ndarray
    """[N] index into the phases."""
    training: np.ndarray
    """Indices of the frames to train on, in an order that doesn't depend on how they arrived."""
    validation: np.ndarray
    """Indices of the held-out frames, likewise."""


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
    return Frames(**columns, training=order[~held_out], validation=order[held_out])


def _annotations_of(episodes: Iterable[Location], annotations: Location) -> dict[Location, Location]:
    by_name = {path.stem: path for path in store.list_annotations(annotations)}
    missing = [path.stem for path in episodes if path.stem not in by_name]
    if missing:
        raise UserError(
            f"{annotations} lacks {len(missing)} of the dataset's successful episodes, first {missing[0]}; "
            "run jobs/annotate.py on this dataset again"
        )
    return {path: by_name[path.stem] for path in episodes}


def _held_out(episodes: Mapping[Location, Mapping[str, Any]], fraction: float) -> set[Location]:
    """The first `fraction` of each task's episodes by hash of their name: the same whatever else is in the dataset."""
    tasks = defaultdict(list)
    for path, footer in episodes.items():
        tasks[footer["key"]["suite"], footer["key"]["task"]].append(path)
    chosen: set[Location] = set()
    for paths in tasks.values():
        chosen.update(sorted(paths, key=lambda path: _hash(path.stem))[: round(fraction * len(paths))])
    return chosen


def _provenance(
    data: Location,
    annotations: Location | None,
    episodes: Mapping[Location, Mapping[str, Any]],
    labels: Mapping[Location, Location],
) -> dict[str, Any]:
    init_states: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for footer in episodes.values():
        key = store.read_key(footer["key"])
        init_states[key.suite][str(key.task)].add(key.init.label)
    record: dict[str, Any] = {
        "data": data.name,
        "episodes": len(episodes),
        "init_states": {
            suite: {task: sorted(states) for task, states in tasks.items()} for suite, tasks in init_states.items()
        },
        "policies": sorted({footer["key"]["policy"] for footer in episodes.values()}),
        "render": "+".join(sorted({str(footer["render"]) for footer in episodes.values()})),
        "image_orientation": "upright",
    }
    if annotations:
        record["annotations"] = annotations.name
        origins = list(in_parallel(store.annotation_provenance, labels.values()))
        # A VLM goes by its model and revision.
        record["annotators"] = sorted({str(origin.get("model") or origin["annotator"]) for origin in origins})
        record["taxonomies"] = sorted({int(origin["taxonomy"]) for origin in origins})
    return record


def _without_images(path: Location) -> Episode:
    return store.read_episode(path, images=False)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
