"""Who is evaluated: a teacher by its name, or a student by its directory."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from vlaad_ray.configs import (
    ActuationConfig,
    EvalConfig,
    Location,
    ServingConfig,
    UserError,
    location,
    named_settings,
    what_a_checkpoint_is,
)
from vlaad_ray.deploy import loading
from vlaad_ray.deploy.policy import StudentPolicy, check_execute, fit_images
from vlaad_ray.deploy.shaping import Shaped, shape
from vlaad_ray.teachers import TEACHERS, find_teacher
from vlaad_ray.types import BatchPolicy, LocalPolicy, Policy, SharedPolicy, Trained

STUDENT_EXECUTES = 2
"""Actions of a student's chunk that are executed by default."""
Precision = Literal["fp32", "bf16"]


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
        described = loading.describe(directory)
        return find_student(config, directory.resolve(), described), described.training
    if config.precision != EvalConfig.precision:
        raise UserError(f"--precision {config.precision} is a student's; the teacher {config.policy} has its own")
    teacher = find_teacher(config.policy, config.teacher_config, config.suite, config.execute)
    if config.device == "cuda" and isinstance(teacher, LocalPolicy):
        raise UserError(f"--device cuda: the teacher {config.policy} computes nothing that a GPU could do")
    return teacher, {}


def find_student(config: EvalConfig, directory: Location, described: loading.Description) -> LocalPolicy | SharedPolicy:
    """A copy in every simulator's process; shared replicas with --replicas, or on GPUs."""
    interface = described.interface
    execute = config.execute or STUDENT_EXECUTES
    check_execute(execute, interface.chunk)
    if config.device == "cpu" and config.serving.gpus_per_replica > 0:
        raise UserError("--gpus-per-replica: a student computes on CPUs unless told otherwise; add --device cuda")
    loading.check_runs(directory, config.device, precision(config))
    own = functools.partial(shaped, execute, config.ensemble, config.actuation, interface.gripper)
    settings = {
        "execute": execute,
        **named_settings(config.actuation),
        **named_settings(config, "ensemble", "device", "precision"),
    }
    known: dict[str, Any] = {"settings": settings, "trained": Trained(described.training.get("render"))}
    if config.device == "cpu" and not config.serving.replicas:
        make = functools.partial(load_student, directory, precision(config), own)
        make()  # a broken one, or bad settings, fail here, not on actors
        return LocalPolicy(described.name, make, **known)
    shape(execute, config.ensemble, config.actuation, interface.gripper)
    return SharedPolicy(
        described.name,
        functools.partial(load_copy, directory, precision(config)),
        execute=None,
        prepare=functools.partial(fit_images, cameras=interface.cameras, size=interface.image_size),
        wrap=own,
        **known,
    )


def precision(config: EvalConfig) -> Precision | None:
    """As loading has it: None leaves an export its own."""
    return None if config.precision == EvalConfig.precision else config.precision


def load_student(directory: Location, dtype: Precision | None, own: Any, _: Any = None) -> Policy:
    """In an environment's process: a copy for it alone, whole answers, and around it what is the environment's own."""
    policy: Policy = own(StudentPolicy(loading.load(directory, "cpu", dtype)))
    return policy


def load_copy(directory: Location, dtype: Precision | None, device: str) -> BatchPolicy:
    """In a replica's process: a copy for many environments, whole answers."""
    return StudentPolicy(loading.load(directory, device, dtype))


def shaped(
    execute: int, ensemble: float | None, actuation: ActuationConfig, gripper: int | None, policy: Policy
) -> Policy:
    """What one environment has of its own, around a student that is its own or shared."""
    return Shaped(policy, shape(execute, ensemble, actuation, gripper))


def check_device(device: Literal["cpu", "cuda"]) -> None:
    """Raises UserError where this machine would compute and has no GPU; what a cluster has, its own Ray tells."""
    if device == "cuda" and "RAY_ADDRESS" not in os.environ and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU on this machine; leave --device out, or submit to a cluster")


def on_device(serving: ServingConfig, device: Literal["cpu", "cuda"]) -> ServingConfig:
    """Replicas on GPUs get a whole one each, unless told otherwise."""
    if device == "cpu" or serving.gpus_per_replica > 0:
        return serving
    return replace(serving, gpus_per_replica=1.0)
