"""Times one policy in a process of its own, so that its first call and its memory are its own.

python -m vlaad_ray.experiments.bench.latency student|teacher REQUEST: the request is JSON, and so is the answer,
on the last line.
For a student it imports what a robot's process would, and nothing else.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlaad_ray.types import CAMERAS, PROPRIO_DIM, Observation

if TYPE_CHECKING:
    from vlaad_ray.deploy.policy import StudentPolicy

INSTRUCTION = "pick up the alphabet soup and place it in the basket"
WARM = 5
"""Calls after the first that don't count either: allocators and caches settle."""
BATCH_CALLS = 10
"""Timed calls of a batch, at least."""


@dataclass(frozen=True)
class StudentRequest:
    """What to time."""

    directory: str
    """A checkpoint, or an exported policy."""
    device: str
    dtype: str | None
    """For a checkpoint."""
    image_size: int
    """Of the observations, in pixels."""
    threads: int
    calls: int
    mode: str | None = None
    """How torch runs a checkpoint (TorchBackend); None: its default."""
    batches: tuple[int, ...] = ()
    """Observations at once, for throughput; beside batch 1, which is timed in any case."""
    warm: int = WARM
    """Calls after the first that don't count either."""


@dataclass(frozen=True)
class TeacherRequest:
    """OpenVLA-7B with random weights in bf16."""

    layers: int | None
    """Of the language model; None: all."""
    device: str
    threads: int
    calls: int


def time_student(request: StudentRequest) -> dict[str, Any]:
    """Load, answer once, then `calls` times. Milliseconds and MB (10^6 bytes)."""
    import torch

    from vlaad_ray.deploy.policy import StudentPolicy

    torch.set_num_threads(request.threads)
    began = time.perf_counter()
    policy = StudentPolicy.from_pretrained(
        request.directory,
        device=request.device,
        dtype=request.dtype,  # type: ignore[arg-type]
        mode=request.mode,  # type: ignore[arg-type]
    )
    loaded = time.perf_counter()
    reset_peak_memory(request.device)  # loading holds bf16's weights in fp32 as well, for a moment
    observations = random_observations(8, request.image_size)
    # An answer is an array on the CPU, so that a GPU has done its work when the clock is read.
    timed = time_calls(
        lambda number: policy.infer(observations[number % len(observations)]), request.warm, request.calls
    )
    answer: dict[str, Any] = {"load_ms": 1000 * (loaded - began), **timed, **peak_memory(request.device)}
    if request.batches:
        answer["batches"] = {str(size): time_batch(policy, size, request) for size in request.batches}
    return answer


def time_batch(policy: StudentPolicy, size: int, request: StudentRequest) -> dict[str, float]:
    """Throughput of `infer_batch`, `calls` observations in all, but BATCH_CALLS calls at least."""
    observations = random_observations(size, request.image_size)
    reset_peak_memory(request.device)
    calls = max(BATCH_CALLS, request.calls // size)
    timed = time_calls(lambda _: policy.infer_batch(observations), WARM, calls)
    return {
        "inferences_per_second": size * timed["inferences_per_second"],
        "p50_ms": timed["p50_ms"],
        **peak_memory(request.device),
    }


def time_teacher(request: TeacherRequest) -> dict[str, float]:
    """Load, answer once, then `calls` times: one action each."""
    import torch

    from vlaad_ray.experiments.bench import openvla

    torch.set_num_threads(request.threads)
    policy, parameters = openvla.random_policy("full", torch.device(request.device), torch.bfloat16, request.layers)
    (observation,) = openvla.random_observations(1)
    timed = time_calls(lambda _: policy.infer(observation), 0, request.calls)
    return {"parameters": parameters, **timed, **peak_memory(request.device)}


def time_calls(infer: Callable[[int], object], warm: int, calls: int) -> dict[str, float]:
    """`infer(n)` for n = 0, 1, …, each timed by itself: the first, `warm` that don't count, percentiles of the rest."""
    seconds = []
    for number in range(1 + warm + calls):
        began = time.perf_counter()
        infer(number)
        seconds.append(time.perf_counter() - began)
    steady = seconds[1 + warm :]
    return {
        "inferences_per_second": calls / sum(steady),
        "p50_ms": 1000 * float(np.percentile(steady, 50)),
        "p99_ms": 1000 * float(np.percentile(steady, 99)),
        "fastest_ms": 1000 * min(steady),
        "first_ms": 1000 * seconds[0],
        "calls": calls,
    }


def random_observations(count: int, size: int) -> list[Observation]:
    """Noise for images, from both cameras, one instruction."""
    random = np.random.default_rng(0)
    return [
        Observation(
            INSTRUCTION,
            random.normal(size=PROPRIO_DIM).astype(np.float32),
            {camera: random.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in CAMERAS},
        )
        for _ in range(count)
    ]


def reset_peak_memory(device: str) -> None:
    """Of a GPU. A process's own cannot be."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, float]:
    """Most MB that this process has held. Not ru_maxrss, which a child inherits from its parent.

    On a GPU since `reset_peak_memory`: what tensors took, and what torch had reserved for them.
    """
    import torch

    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    held = {"peak_memory_mb": int(found[1]) * 1024 / 1e6}
    if torch.device(device).type == "cuda":
        held["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
        held["peak_gpu_reserved_mb"] = torch.cuda.max_memory_reserved() / 1e6
    return held


def main(kind: str, request: str) -> dict[str, Any]:
    """The answer to a request in JSON."""
    fields = json.loads(request)
    return time_student(StudentRequest(**fields)) if kind == "student" else time_teacher(TeacherRequest(**fields))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
