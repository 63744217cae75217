"""The rules' annotation: phase, direction and description from proprioception, gripper commands and instruction."""

from __future__ import annotations

import hashlib
import inspect

from vlaad_ray.semantics import directions, phases
from vlaad_ray.types import Annotation, Episode


def nine_phases(episode: Episode) -> tuple[str, ...]:
    """[T] labels of the nine phases."""
    return phases.classify(episode.proprio, episode.actions[:, 6], episode.instruction)


def by_rules(episode: Episode, taxonomy: int) -> Annotation:
    """Labels of a taxonomy of 3 to 13 phases for every frame."""
    nine = nine_phases(episode)
    labels = phases.relabel(nine, episode.proprio, taxonomy)
    segments = phases.segments(labels)
    moving = directions.directions(segments, episode.proprio)
    subtasks = directions.subtasks_by_frame(nine, episode.instruction)
    return Annotation(
        episode=episode.key.name,
        phases=labels,
        directions=moving,
        descriptions=tuple(map(directions.describe, labels, moving, subtasks)),
        segments=segments,
        sources=("rules",) * len(labels),
        flags=("",) * len(labels),
    )


def rules_hash() -> str:
    """8 hex digits over the rules' own source: any change of a threshold or a word makes new annotations."""
    return hashlib.sha256("".join(map(inspect.getsource, (phases, directions))).encode()).hexdigest()[:8]
