"""Stage 2: from episodes to annotations: phase, direction and description of every frame."""

from vlaad_ray.annotate.records import table
from vlaad_ray.annotate.stage import annotate

__all__ = ["annotate", "table"]
