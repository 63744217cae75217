"""Columns of an annotation that VLA-AD's objectives train on."""

from __future__ import annotations

from vlaad_ray.methods.method import Columns
from vlaad_ray.types import Annotation, Episode


def descriptions(episode: Episode, annotation: Annotation | None) -> Columns:
    assert annotation is not None
    return {"description": annotation.descriptions}


def descriptions_and_directions(episode: Episode, annotation: Annotation | None) -> Columns:
    """The auxiliary form alone does without descriptions, but its students know their words, too."""
    assert annotation is not None
    return {"description": annotation.descriptions, "direction": annotation.directions}
