"""What training workers ask of the cluster, and what becomes of them."""

from __future__ import annotations

import ray.train
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from vlaad_ray.configs import Location, TrainConfig, UserError
from vlaad_ray.configs.errors import cannot_write
from vlaad_ray.runtime import cluster
from vlaad_ray.runtime.cluster import cause_of_death
from vlaad_ray.runtime.nodes import fitted, nodes, refuse_hopeless
from vlaad_ray.runtime.placement import Processes, Share, divide, hosts

SPARE_CPUS = 0.01
"""Of each worker's CPUs, left unreserved: so decoding, which ends before training begins, never waits for CPUs that the
workers hold. So little that a node still takes no more workers than it has CPUs."""
LOADER_CPUS = 0.005
"""That Ray Data reserves for each decoding task, of what the workers leave."""


def processes(config: TrainConfig) -> Processes:
    """One worker with a GPU, else one for each CPU, unless the config says how many."""
    count = config.workers or int(config.gpus_per_worker > 0)
    return Processes("worker", count, config.cpus_per_worker, config.gpus_per_worker, share=True)


def share(config: TrainConfig) -> Share:
    """Workers, and CPUs of each. Waits for nodes, or raises UserError, when they fit none (runtime.nodes)."""
    wanted = processes(config)
    return fitted(lambda there: divide(there, wanted), wanted, config.wait_for_nodes_s)


def refuse_hopeless_workers(config: TrainConfig) -> None:
    """Before stages that come first: raise UserError if the workers could never start."""
    if config.workers or config.cpus_per_worker or config.gpus_per_worker:
        cluster.connect()
        refuse_hopeless(lambda there: divide(there, processes(config)))


def scaling(share: Share, gpus_per_worker: float) -> ray.train.ScalingConfig:
    """The bundles that Ray Train asks for, one a worker."""
    resources = {"CPU": share.cpus - SPARE_CPUS}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    return ray.train.ScalingConfig(num_workers=share.count, use_gpu=gpus_per_worker > 0, resources_per_worker=resources)


def memory(share: Share, gpus_per_worker: float) -> float:
    """Bytes of the nodes that a worker may run on, all together."""
    worker = Processes("worker", 1, share.cpus, gpus_per_worker)
    return sum(node["memory"] for node in hosts(nodes(), worker))


def loaders() -> int:
    """Decoding tasks at a time: one for each CPU, since they reserve next to nothing."""
    return max(1, int(sum(node.get("CPU", 0.0) for node in nodes())))


def users_error(error: TrainingFailedError, out: Location) -> UserError | None:
    """What the user can mend, freed from the wrappings of Ray Data and Ray Train; None for anything else."""
    failures: list[Exception] = []
    if isinstance(error, WorkerGroupError):
        failures = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        failures = [error.controller_failure]
    for failure in failures:
        cause = cluster.cause(failure)
        if isinstance(cause, UserError):  # a picture that does not decode
            return UserError(str(cause).splitlines()[0])  # Ray Data adds lines on how to retry
        if isinstance(cause, RayActorError) and not cause.actor_init_failed:
            return UserError(f"a training worker died: {cause_of_death(cause)}; rerun the same command to continue")
        if isinstance(cause, OSError) and (known := cannot_write(f"{out}/ray", cause)) is not None:
            return known  # where Ray Train puts its checkpoints
        if isinstance(cause, RuntimeError) and "NCCL" in str(cause):
            return UserError(
                f"--gpus-per-worker: torch on the workers' node cannot use its GPU ({str(cause).splitlines()[-1]}); "
                "install a torch for CUDA there, or train on CPUs"
            )
    return None
