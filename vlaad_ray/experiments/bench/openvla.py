"""Latency and throughput of OpenVLA with random weights: batches against the same observations one by one."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import BenchOpenVlaConfig
from vlaad_ray.deploy.loading import check_device
from vlaad_ray.models.openvla.actions import parse_statistics
from vlaad_ray.models.openvla.preprocess import CAMERA, RAW_SIZE, prepare
from vlaad_ray.models.openvla.random_checkpoint import (
    PREPROCESSOR_JSON,
    Size,
    make_tokenizer,
    random_model,
    statistics_json,
)
from vlaad_ray.models.openvla.settings import parse_normalisation
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.teachers.openvla import DTYPES, OpenVla
from vlaad_ray.types import PROPRIO_DIM, Observation

PAPER_HZ = 3.8
"""VLA-AD's figure for OpenVLA-7B on an RTX 4090, arXiv 2605.16241: actions a second, one at a time."""
SINGLES = 4
"""Observations asked one by one in a block, at most: their time is scaled up to the batch."""
INSTRUCTIONS = (
    "pick up the milk and place it in the basket",
    "put the bowl on the stove",
    "open the middle drawer of the cabinet",
    "push the plate to the front of the stove",
)


def bench_openvla(config: BenchOpenVlaConfig) -> dict[str, Any]:
    """Weights are random, their number and shapes OpenVLA's: speed doesn't depend on their values."""
    begin(config.out, config)
    check_device(config.device)
    device = torch.device(config.device)
    write_run_record(config.out, config)
    policy, parameters = random_policy(config.size, device, DTYPES[config.dtype])
    batches = {}
    with cli.progress("bench openvla", len(config.batches)) as advance:
        for batch in config.batches:
            batches[str(batch)] = measure(policy, batch, config.repeats, device)
            advance(f"batch {batch}")
    summary = {
        "batches": batches,
        "paper_hz_rtx_4090": PAPER_HZ,
        "parameters": parameters,
        "size": config.size,
        "dtype": config.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def random_policy(
    size: Size, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> tuple[OpenVla, int]:
    """OpenVLA with random weights, and their number. `layers`: of the language model; None: all."""
    model = random_model(size, device, dtype, layers=layers)
    (entry, *_) = statistics_json().values()
    normalisation = parse_normalisation(PREPROCESSOR_JSON, "built in")
    policy = OpenVla(model, make_tokenizer(), normalisation, parse_statistics(entry, "built in"))
    return policy, sum(weight.numel() for weight in model.parameters())


def measure(policy: OpenVla, batch: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Medians over alternating blocks: `batch` observations at once, then the same one by one.

    Times are a replica's: from prepared images, as environments send them, to actions. Memory is the most that this
    process has held: on the GPU since the block began, otherwise (resident) since it started.
    """
    observations = [prepare(each, policy.image_size) for each in random_observations(batch)]
    together: list[float] = []
    one_by_one: list[float] = []
    policy.infer_batch(observations)  # the first call chooses kernels and grows the allocator's pools
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        start = time.perf_counter()
        policy.infer_batch(observations)  # ends with the actions on the CPU, hence synchronised
        together.append(time.perf_counter() - start)
        start = time.perf_counter()
        singles = observations[:SINGLES]
        for observation in singles:
            policy.infer_batch([observation])
        one_by_one.append((time.perf_counter() - start) / len(singles) * batch)
    latency = statistics.median(together)
    return {
        "latency_p50_s": latency,
        "actions_per_s": batch / latency,
        "speedup_over_one_by_one": statistics.median(
            single / whole for single, whole in zip(one_by_one, together, strict=True)
        ),
        "peak_memory_gib": _peak_bytes(device) / 2**30,
    }


def random_observations(count: int) -> Sequence[Observation]:
    """Noise for images, LIBERO-like instructions of different lengths."""
    random = np.random.default_rng(0)
    return [
        Observation(
            INSTRUCTIONS[number % len(INSTRUCTIONS)],
            np.zeros(PROPRIO_DIM, np.float32),
            {CAMERA: random.integers(0, 256, (RAW_SIZE, RAW_SIZE, 3), dtype=np.uint8)},
        )
        for number in range(count)
    ]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(summary: dict[str, Any]) -> Table:
    title = (
        f"OpenVLA, random weights ({summary['size']}: {summary['parameters'] / 1e9:.3g} B parameters, "
        f"{summary['dtype']}) on {summary['device']}; paper: {summary['paper_hz_rtx_4090']} Hz (RTX 4090, 7 B)"
    )
    table = Table(title=title, title_justify="left")
    for column in ("batch", "latency p50", "actions/s", "against one by one", "peak memory"):
        table.add_column(column)
    for batch, entry in summary["batches"].items():
        table.add_row(
            batch,
            f"{1000 * entry['latency_p50_s']:.0f} ms",
            f"{entry['actions_per_s']:.2f}",
            f"{entry['speedup_over_one_by_one']:.2f}x",
            f"{entry['peak_memory_gib']:.2f} GiB",
        )
    return table
