"""What must be known of a dataset before its pictures are read: what is held out, all texts, statistics, provenance."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import in_parallel
from vlaad_ray.methods.bc import BC
from vlaad_ray.methods.method import Method
from vlaad_ray.types import Annotation, Embodiment, Episode

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
    content: str
    """Hash of its content."""
    pictures: Mapping[str, int]
    """Camera -> at how many steps it has a picture."""

    def frames(self, cameras: Sequence[str]) -> int:
        """At most so many steps have pictures of all `cameras`."""
        return min((self.pictures[camera] for camera in cameras), default=self.steps)


@dataclass(frozen=True)
class Survey:
    """What must be known of a dataset before its pictures are read."""

    sources: tuple[EpisodeSource, ...]
    texts: tuple[str, ...]
    """Distinct instructions, and texts in the method's columns; frames refer to them by index."""
    phases: tuple[str, ...]
    embodiment: Embodiment
    """Of all episodes."""
    proprio_mean: np.ndarray
    """[proprio_dim]"""
    proprio_std: np.ndarray
    """[proprio_dim]"""
    fingerprint: str
    """Changes with the content of any episode or annotation used."""
    provenance: dict[str, Any]
    """For the checkpoint: what it was trained on, in words and numbers."""

    @property
    def steps(self) -> int:
        return sum(source.steps for source in self.sources)

    def frames(self, cameras: Sequence[str]) -> int:
        """At most so many steps have pictures of all `cameras`: those that are trained on or held out."""
        return sum(source.frames(cameras) for source in self.sources)


def survey(
    data: Location,
    annotations: Location | None,
    validation_fraction: float,
    method: Method = BC,
    more: Sequence[tuple[Location, Location | None]] = (),
) -> Survey:
    """Read everything but images, each file once. Only episodes that succeeded count; all are annotated, or none.

    `method`: whose columns are trained on. `more`: further datasets with their annotations; an episode that several
    have counts once. Raises UserError for data that cannot be trained on.
    """
    datasets = [(data, annotations), *more]
    listed = {place: {path.stem: path for path in store.list_episodes(place)} for place, _ in datasets}
    paths = list({stem: path for found in reversed(listed.values()) for stem, path in found.items()}.values())
    look = functools.partial(store.survey_episode, wanted=_is_success)
    seen = dict(zip(paths, in_parallel(look, paths), strict=True))
    successes = {path: footer for path, (footer, found) in seen.items() if found is not None}
    episodes = {path: found for path, (_, found) in seen.items() if found is not None}
    if not successes:
        raise UserError(f"{data} holds no successful episode ({len(seen)} failed ones); collect more")
    embodiment = _embodiment(data, successes)
    labels: dict[Location, Location] = {}
    for place, notes in datasets:
        if notes:
            mine = set(listed[place].values())
            labels |= _annotations_of([path for path in successes if path in mine], notes)
    held_out = _held_out(successes, validation_fraction)
    # Ordered by hash, so that tasks are mixed and every worker's share holds all of them.
    order = sorted(successes, key=lambda path: _hash(path.stem))

    read = dict(zip(labels, in_parallel(store.read_labels, labels.values()), strict=True))
    texts, phases, origins = set[str](), set[str](), []
    sources = []
    digest = hashlib.sha256()
    for number, path in enumerate(order):
        episode, pictures = episodes[path]
        content = successes[path]["content_hash"]
        texts.add(episode.instruction)
        digest.update(f"{path.stem} {content}\n".encode())
        annotation = None
        if path in labels:
            annotation, origin = read[path]
            origins.append(origin)
            if len(annotation.phases) != len(episode):
                raise UserError(
                    f"{labels[path]} has {len(annotation.phases)} rows, its episode {len(episode)} steps; "
                    "run jobs/annotate.py again"
                )
        labelled = phases_of(episode, annotation)
        phases.update(labelled)
        for values in method.columns(episode, annotation).values():
            if are_texts(values):
                texts.update(values)
                digest.update("\n".join(values).encode())
            else:
                digest.update(np.ascontiguousarray(values).tobytes())
        if method.phases:
            digest.update("\n".join(["", *labelled]).encode())
        sources.append(EpisodeSource(number, path, labels.get(path), len(episode), path in held_out, content, pictures))
    proprio = [episodes[source.path].episode.proprio for source in sources if not source.held_out]
    stacked = np.concatenate(proprio)
    return Survey(
        sources=tuple(sources),
        texts=tuple(sorted(texts)),
        phases=tuple(sorted(phases)),
        embodiment=embodiment,
        proprio_mean=stacked.mean(0),
        proprio_std=np.maximum(stacked.std(0), MIN_PROPRIO_STD),
        fingerprint=digest.hexdigest()[:16],
        provenance=_provenance(datasets, successes, origins),
    )


def phases_of(episode: Episode, annotation: Annotation | None) -> tuple[str, ...]:
    """[T] labels: the annotation's, or what the teacher says of itself."""
    return annotation.phases if annotation else tuple(phase or NO_PHASE for phase in episode.phases)


def are_texts(values: Sequence[str] | np.ndarray) -> TypeGuard[Sequence[str]]:
    return not isinstance(values, np.ndarray)


def _is_success(footer: Mapping[str, Any]) -> bool:
    return bool(footer["success_final"])


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
    datasets: Sequence[tuple[Location, Location | None]],
    episodes: Mapping[Location, Mapping[str, Any]],
    origins: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    init_states: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for footer in episodes.values():
        key = store.read_key(footer["key"])
        init_states[key.suite][str(key.task)].add(key.init.label)
    record: dict[str, Any] = {
        "data": " + ".join(data.name for data, _ in datasets),
        "episodes": len(episodes),
        "init_states": {
            suite: {task: sorted(states) for task, states in tasks.items()} for suite, tasks in init_states.items()
        },
        "policies": sorted({footer["key"]["policy"] for footer in episodes.values()}),
        "render": "+".join(sorted({str(footer["render"]) for footer in episodes.values()})),
        "image_orientation": "upright",
    }
    if origins:
        record["annotations"] = " + ".join(notes.name for _, notes in datasets if notes)
        # A VLM goes by its model and revision.
        record["annotators"] = sorted({str(origin.get("model") or origin["annotator"]) for origin in origins})
        record["taxonomies"] = sorted({int(origin["taxonomy"]) for origin in origins})
    return record


def _embodiment(data: Location, episodes: Mapping[Location, Mapping[str, Any]]) -> Embodiment:
    """That of all episodes. Raises UserError for a mixture."""
    found: dict[Embodiment, Location] = {}
    for path, footer in episodes.items():
        found.setdefault(store.read_embodiment(footer), path)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        name, here, there = next(
            (name, here, there)
            for name, here, there in zip(vars(one), vars(one).values(), vars(other).values(), strict=True)
            if here != there
        )
        raise UserError(
            f"{data} mixes robots: {name} is {here} in {first.name}, {there} in {second.name}; "
            "keep the episodes of each in a dataset of its own"
        )
    return next(iter(found))


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
