"""The rules' annotation: phase, direction and description from proprioception, gripper commands and instruction."""

from __future__ import annotations

import hashlib
import inspect

from vlaad_ray.configs import UserError
from vlaad_ray.semantics import directions, phases
from vlaad_ray.types import Annotation, Embodiment, Episode


def unsuitable(body: Embodiment, whose: object) -> str | None:
    """What to say of a robot whose phases and directions cannot be told; None: they can."""
    if body.libero_arm:
        return None
    return (
        f"{whose} is of a robot that cannot be annotated: rules and VLM need hand position, orientation and "
        "gripper as LIBERO's arm has them, 20 steps a second; train on it with --objective bc"
    )


def check_robot(body: Embodiment, whose: object) -> None:
    """Raises UserError for a robot whose phases and directions cannot be told."""
    if (why := unsuitable(body, whose)) is not None:
        raise UserError(why)


def nine_phases(episode: Episode) -> tuple[str, ...]:
    """[T] labels of the nine phases. Raises UserError for a robot that has none."""
    check_robot(episode.embodiment, episode.key.name)
    return phases.classify(episode.proprio, episode.actions[:, 6], episode.instruction)


def by_rules(episode: Episode, nine: tuple[str, ...], taxonomy: int) -> Annotation:
    """Labels of a taxonomy of 3 to 13 phases for every frame, from those of the nine."""
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
