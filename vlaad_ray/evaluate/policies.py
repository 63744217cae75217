"""Who is evaluated: a teacher by its name, or a student by its directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlaad_ray.configs import EvalConfig, UserError, location, what_a_checkpoint_is
from vlaad_ray.deploy.acting import Acting, check_device, student_policy
from vlaad_ray.teachers import TEACHERS, find_teacher
from vlaad_ray.types import LocalPolicy, SharedPolicy


def find_policy(config: EvalConfig) -> tuple[LocalPolicy | SharedPolicy, Mapping[str, Any]]:
    """A teacher's name or a checkpoint directory -> (the policy, its training record). Raises UserError for neither.

    What cannot run is refused here, before anything starts.
    """
    check_device(config.device)
    if config.policy not in TEACHERS:
        directory = location(config.policy)
        if not directory.is_dir():
            raise UserError(
                f"--policy: {config.policy!r} is neither a teacher ({', '.join(TEACHERS)}) nor a checkpoint; "
                f"{what_a_checkpoint_is(config.policy)}"
            )
        from vlaad_ray.deploy.loading import describe  # torch, which a teacher alone does without

        described = describe(directory)
        acting = Acting(config.execute, config.actuation, config.ensemble, config.device, config.precision)
        return student_policy(directory.resolve(), described, acting, config.serving), described.training
    if config.precision != EvalConfig.precision:
        raise UserError(f"--precision {config.precision} is a student's; the teacher {config.policy} has its own")
    teacher = find_teacher(config.policy, config.teacher_config, config.suite, config.execute)
    if config.device == "cuda" and isinstance(teacher, LocalPolicy):
        raise UserError(f"--device cuda: the teacher {config.policy} computes nothing that a GPU could do")
    return teacher, {}
