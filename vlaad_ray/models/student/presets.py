"""Which networks there are. An architecture's module is imported when one of its students is asked for, not before:
users of the small student need no transformers.
"""

from __future__ import annotations

from typing import Literal

from vlaad_ray.models.student.model import Student, StudentConfig

Architecture = Literal["small", "clip"]
PRESETS: dict[str, Architecture] = {"small": "small", "vlaad_158m": "clip"}
"""A preset is the config of its architecture as it is by default."""


def network(architecture: Architecture) -> tuple[type[StudentConfig], type[Student]]:
    """Its config and its network."""
    if architecture == "small":
        from vlaad_ray.models.student import small

        return small.SmallConfig, small.SmallStudent
    from vlaad_ray.models.student import clip

    return clip.ClipConfig, clip.ClipStudent
