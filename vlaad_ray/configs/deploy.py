"""Running a student by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vlaad_ray.configs.bounds import Flat, at_least, between
from vlaad_ray.configs.common import WAIT_FOR_NODES_S, ActuationConfig
from vlaad_ray.configs.places import Location


@dataclass(frozen=True)
class ServedStudentConfig:
    """Which student answers, and how."""

    checkpoint: Location
    """Checkpoint directory, as jobs/train.py wrote it, or what jobs/export.py made of one."""
    execute: Annotated[int, at_least(0)] = 0
    """Actions in an answer; 0: all K of the student's. Clients must execute all of them before they ask again, or set
    --gripper-dwell 0 --gripper-memory 0."""
    dtype: Literal["bf16", "fp32"] | None = None
    """Precision in which torch runs a checkpoint; None: fp32. An export has its own."""


@dataclass(frozen=True)
class ServerConfig:
    """Where a policy server listens, whom it lets in, and how it collects requests."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token."""
    port: Annotated[int, between(0, 65535)] = 8000
    """0: any free one."""
    token_file: Path | None = None
    """File with the token that clients must present; else the environment variable VLAAD_TOKEN, if there is one."""
    allow_no_token: bool = False
    """Listen to other machines without a token: whoever reaches the port may ask."""
    actuation: Flat[ActuationConfig] = ActuationConfig()
    ensemble: Annotated[float | None, at_least(0)] = None
    """Average a client's overlapping chunks, as jobs/eval.py does: predictions i = 0, 1, … (oldest first) weigh
    exp(-ENSEMBLE * i); ACT uses 0.01, and --execute 1. None: each chunk stands alone."""
    max_connections: Annotated[int, at_least(1)] = 64
    """Clients at once; more are turned away (HTTP 503)."""
    max_batch: Annotated[int, at_least(1)] = 32
    """Most observations in one batch: lower it when memory runs out."""
    max_wait_ms: Annotated[float, at_least(0)] = 20.0
    """Longest that the idle student holds requests back for clients that are about to ask. It usually waits for less;
    0: it starts as soon as anybody asks."""


@dataclass(frozen=True)
class ExportConfig:
    """Turn a checkpoint into a policy for ONNX Runtime or OpenVINO, and compare it with torch on real frames.

    An export that doesn't agree is an error and does not load.
    """

    checkpoint: Location
    """Checkpoint directory, as jobs/train.py wrote it."""
    data: Location
    """Dataset directory, as jobs/collect.py wrote it: frames to compare on, and others to calibrate int8."""
    out: Location
    """Where the exported policy goes, with summary.json."""
    backend: str = "openvino"
    """What is to run it: openvino or onnx (ONNX Runtime)."""
    precision: Literal["fp32", "bf16", "int8"] = "bf16"
    """Of the weights and the arithmetic; the last layers, which decide on the bins, stay fp32. onnx: fp32 only."""
    frames: Annotated[int, at_least(1)] = 512
    """Frames on which torch (fp32) and the export must agree."""
    calibration: Annotated[int, at_least(1)] = 256
    """Frames, of other episodes, from which int8 takes its ranges."""
    bar: Annotated[float, between(0, 1)] = 0.0
    """Least share of likeliest bins, and of gripper commands, that must be the same; 0: 0.99, for int8 0.75 (its
    rounding moves many a close call by a bin; what counts is success in closed loop, jobs/eval.py --compare-to)."""


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained student over openpi's websocket protocol. No Ray, no LIBERO."""

    student: Flat[ServedStudentConfig]
    device: str = "cpu"
    """torch device."""
    server: Flat[ServerConfig] = ServerConfig()


@dataclass(frozen=True)
class ServeClusterConfig:
    """Serve a trained student over openpi's websocket protocol from replicas on a cluster, through Ray Serve."""

    student: Flat[ServedStudentConfig]
    replicas: Annotated[int, at_least(1)] = 1
    """Copies of the student; connections are dealt out among them."""
    gpus_per_replica: Annotated[float, at_least(0)] = 0.0
    """GPUs, or the fraction of one, for each copy; 0: it computes on CPUs."""
    cpus_per_replica: Annotated[float, at_least(0)] = 1.0
    """CPUs set aside for each copy."""
    wait_for_nodes_s: Annotated[float, at_least(0)] = WAIT_FOR_NODES_S
    """Longest wait for a node that the autoscaler may bring, when the copies fit none. Without one nothing waits."""
    server: Flat[ServerConfig] = ServerConfig()
    """Limits are a replica's. Every node of the cluster listens."""
