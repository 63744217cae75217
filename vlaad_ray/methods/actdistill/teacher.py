"""The network that both stages begin with."""

from __future__ import annotations

from vlaad_ray.configs import Location, UserError, read_record
from vlaad_ray.models.student.checkpoint import read_config
from vlaad_ray.models.vla.mini import MiniVlaConfig


def teacher_config(place: Location, flag: str) -> MiniVlaConfig:
    """Of a checkpoint whose layers can be read and skipped. Raises UserError, naming the `flag`, for any other."""
    written = read_config(place)
    if written["architecture"] != MiniVlaConfig.architecture:
        raise UserError(
            f"{flag} {place} is a {written['architecture']} student, which has no decoder layers to skip; train the "
            "teacher with --student mini_vla"
        )
    config = read_record(MiniVlaConfig, written["student"], f"{place}: 'student'", "copy the checkpoint again")
    if config.routed or config.route:
        raise UserError(f"{flag} {place} skips layers already; give the teacher it was made from")
    return config
