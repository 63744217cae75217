"""What determines an annotation: the same again means the same labels, so nothing is repeated."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from vlaad_ray import store
from vlaad_ray.annotate import rules
from vlaad_ray.configs import AnnotateConfig, Location, UserError
from vlaad_ray.runtime import record
from vlaad_ray.types import Annotation


def origin(config: AnnotateConfig) -> dict[str, Any]:
    """What determines annotations, beside the episode: the same again means the same labels, so nothing is repeated."""
    return {
        "annotator": config.annotator,
        "taxonomy": config.phases,
        "rules": rules.rules_hash(),
        "version": record.software()["versions"].get("vlaad-ray"),
        "data": str(config.data.resolve()),
    }


def existing(out: Location, episode: str, origin: dict[str, Any]) -> Annotation | None:
    """The annotation made before with the same provenance. One that is missing, other or unreadable is made anew."""
    path = store.annotation_path(out, episode)
    with suppress(UserError):
        if path.exists() and store.annotation_provenance(path) == origin:
            return store.read_annotation(path)
    return None
