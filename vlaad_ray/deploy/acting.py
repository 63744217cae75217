"""A student as a policy in many environments: a copy in every simulator's process, or shared replicas.

Networks are imported where one is looked at: simulators with another policy start without torch.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vlaad_ray.configs import ActuationConfig, Location, ServingConfig, UserError, named_settings
from vlaad_ray.configs.names import Later, Newer
from vlaad_ray.deploy.shaping import Shaped, shape
from vlaad_ray.types import BatchPolicy, LocalPolicy, Policy, SharedPolicy, Trained

if TYPE_CHECKING:
    from vlaad_ray.deploy.loading import Description

STUDENT_EXECUTES = 2
"""Actions of a student's chunk that are executed by default."""
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Acting:
    """How a student acts; the fields are EvalConfig's."""

    execute: int = 0
    actuation: ActuationConfig = ActuationConfig()
    ensemble: Later[float | None] = None
    device: Newer[Literal["cpu", "cuda"]] = "cpu"
    precision: Newer[Precision] = "fp32"


def student_policy(
    directory: Location, described: Description, acting: Acting, serving: ServingConfig
) -> LocalPolicy | SharedPolicy:
    """A copy in every simulator's process; shared replicas where `serving` asks for some, or on GPUs.

    What cannot run is refused here (UserError), before anything starts.
    """
    from vlaad_ray.deploy import loading, policy

    interface = described.interface
    execute = acting.execute or STUDENT_EXECUTES
    policy.check_execute(execute, interface.chunk)
    if acting.device == "cpu" and serving.gpus_per_replica > 0:
        raise UserError("--gpus-per-replica: a student computes on CPUs unless told otherwise; add --device cuda")
    precision = None if acting.precision == "fp32" else acting.precision
    """None leaves an export its own."""
    loading.check_runs(directory, acting.device, precision)
    own = functools.partial(shaped, execute, acting.ensemble, acting.actuation, interface.gripper)
    settings = {
        "execute": execute,
        **named_settings(acting.actuation),
        **named_settings(acting, "ensemble", "device", "precision"),
    }
    known: dict[str, Any] = {"settings": settings, "trained": Trained(described.training.get("render"))}
    if acting.device == "cpu" and not serving.replicas:
        make = functools.partial(load_student, directory, precision, own)
        make()  # a broken one, or bad settings, fail here, not on actors
        return LocalPolicy(described.name, make, **known)
    shape(execute, acting.ensemble, acting.actuation, interface.gripper)
    return SharedPolicy(
        described.name,
        functools.partial(load_copy, directory, precision),
        execute=None,
        prepare=functools.partial(policy.fit_images, cameras=interface.cameras, size=interface.image_size),
        wrap=own,
        **known,
    )


def load_student(directory: Location, dtype: Precision | None, own: Any, _: Any = None) -> Policy:
    """In an environment's process: a copy for it alone, whole answers, and around it what is the environment's own."""
    from vlaad_ray.deploy import loading
    from vlaad_ray.deploy.policy import StudentPolicy

    policy: Policy = own(StudentPolicy(loading.load(directory, "cpu", dtype)))
    return policy


def load_copy(directory: Location, dtype: Precision | None, device: str) -> BatchPolicy:
    """In a replica's process: a copy for many environments, whole answers."""
    from vlaad_ray.deploy import loading
    from vlaad_ray.deploy.policy import StudentPolicy

    return StudentPolicy(loading.load(directory, device, dtype))


def shaped(
    execute: int, ensemble: float | None, actuation: ActuationConfig, gripper: int | None, policy: Policy
) -> Policy:
    """What one environment has of its own, around a student that is its own or shared."""
    return Shaped(policy, shape(execute, ensemble, actuation, gripper))


def check_device(device: Literal["cpu", "cuda"], flag: str = "--device") -> None:
    """Raises UserError where this machine would compute and has no GPU; what a cluster has, its own Ray tells."""
    if device == "cpu" or "RAY_ADDRESS" in os.environ:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{flag} cuda: torch finds no GPU on this machine; leave {flag} out, or submit to a cluster")


def on_device(serving: ServingConfig, device: Literal["cpu", "cuda"]) -> ServingConfig:
    """Replicas on GPUs get a whole one each, unless told otherwise."""
    if device == "cpu" or serving.gpus_per_replica > 0:
        return serving
    return replace(serving, gpus_per_replica=1.0)
