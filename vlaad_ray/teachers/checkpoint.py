"""A trained student as a teacher: what jobs/train.py or jobs/export.py wrote, acting as evaluation lets it act."""

from __future__ import annotations

from vlaad_ray.configs import ActuationConfig, CheckpointConfig, ServingConfig, UserError, what_a_checkpoint_is
from vlaad_ray.deploy import loading
from vlaad_ray.deploy.acting import Acting, student_policy
from vlaad_ray.types import Embodiment, LocalPolicy, SharedPolicy

AS_IT_SAYS = ActuationConfig(gripper_dwell=0, gripper_memory=0, nudge_after=0)


def checkpoint_teacher(config: CheckpointConfig, robot: Embodiment, execute: int) -> LocalPolicy | SharedPolicy:
    """Named by the fingerprint of its weights. Raises UserError for a directory that is none, or of another robot."""
    if config.checkpoint is None:
        raise UserError("--teacher checkpoint needs --checkpoint DIR, as jobs/train.py writes it to OUT/checkpoint")
    if not config.checkpoint.is_dir():
        raise UserError(f"--checkpoint: {config.checkpoint} is not there; {what_a_checkpoint_is(config.checkpoint)}")
    directory = config.checkpoint.resolve()
    described = loading.describe(directory)
    check_robot(described.interface, robot, str(config.checkpoint))
    acting = Acting(
        execute=execute,
        actuation=ActuationConfig() if config.steady else AS_IT_SAYS,
        precision=config.dtype,
    )
    return student_policy(directory, described, acting, ServingConfig(replicas=int(config.shared)))


def check_robot(interface: loading.Interface, robot: Embodiment, source: str) -> None:
    """Raises UserError where a student knows another robot, or looks through a camera that this one lacks."""
    learnt = (interface.action_dim, interface.proprio_dim, interface.gripper)
    if learnt != (robot.action_dim, robot.proprio_dim, robot.gripper) or set(interface.cameras) - set(robot.cameras):
        raise UserError(
            f"--checkpoint: {source} is of another robot: {interface.action_dim} numbers an action, "
            f"{interface.proprio_dim} of proprioception, cameras {', '.join(interface.cameras)}; the suite's has "
            f"{robot.action_dim}, {robot.proprio_dim} and {', '.join(robot.cameras)}"
        )
