"""Teachers' own settings, and the replicas that answer for a large one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vlaad_ray.configs.bounds import above, at_least
from vlaad_ray.configs.places import Location


@dataclass(frozen=True)
class OpenVlaConfig:
    """Where OpenVLA's weights are and how they are run."""

    checkpoint: Location | None = None
    """Directory with config.json, *.safetensors and dataset_statistics.json (readable on all nodes)."""
    unnorm_key: str | None = None
    """Data set whose statistics un-normalise the actions; None: the suite's own."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of weights and activations."""


@dataclass(frozen=True)
class CheckpointConfig:
    """A trained student that teaches."""

    checkpoint: Location | None = None
    """Directory that jobs/train.py wrote to OUT/checkpoint, or what jobs/export.py made of one."""
    dtype: Literal["bf16", "fp32"] = "fp32"
    """In which torch runs a checkpoint. An export has its own."""
    steady: bool = True
    """Steady its gripper as evaluation does (docs/students.md); else it is recorded exactly as it says."""
    shared: bool = False
    """Replicas answer batches (--replicas, --gpus-per-replica), in place of a copy in each simulator's process."""


@dataclass(frozen=True)
class RemoteConfig:
    """Where a policy is served."""

    url: str = "ws://127.0.0.1:8000"
    """Address of a policy server that speaks openpi's protocol."""
    label: str = ""
    """What to call the served policy in names of episodes; needed if the server does not tell."""
    token_file: Path | None = None
    """File with the token (API key) that the server asks for, readable on all nodes."""
    connect_timeout_s: Annotated[float, above(0)] = 60.0
    """How long to keep trying to reach the server, at the start and after it went away."""
    infer_timeout_s: Annotated[float, above(0)] = 120.0
    """Longest wait for one answer (a server's first one may compile for a minute)."""


@dataclass(frozen=True)
class ServingConfig:
    """Replicas of a policy that answers batches. Never changes what an episode contains, beyond rounding."""

    replicas: Annotated[int, at_least(0)] = 0
    """Copies of the policy; simulators are dealt out among them. 0: one of a teacher that needs it (openvla); a student
    on CPUs has a copy of its own in each simulator's process."""
    gpus_per_replica: Annotated[float, at_least(0)] = 0.0
    """GPUs, or the fraction of one, for each copy; 0: it computes on CPUs."""
    cpus_per_replica: Annotated[float, at_least(0)] = 1.0
    """CPUs set aside for each copy: its threads, when it computes on CPUs."""
    max_batch: Annotated[int, at_least(1)] = 32
    """Most observations in one batch: lower it when a copy runs out of memory."""
    max_wait_ms: Annotated[float, at_least(0)] = 250.0
    """Longest that an idle copy holds requests back for a larger batch. It usually waits for much less."""
    batch_timeout_s: Annotated[float, above(0)] = 300.0
    """A batch slower than this counts as hung: the copy is replaced and its requests are sent again."""
