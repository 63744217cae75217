"""How near the batching of teacher requests (rollout.replicas) comes to a perfect batcher.

The teacher sleeps for fixed + item * b seconds over a batch of b, as a GPU would be busy. The environments are threads
of a few processes: each sends a real observation with a camera image to the replica's actor, waits for the answer,
and sleeps as long as a simulator would work. All else, Ray's part included, is as in a real run and counts against us.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import BenchTeacherConfig, ServingConfig
from vlaad_ray.rollout.replicas import INLINE, placed
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.serving.rhythm import TICK, Rhythm
from vlaad_ray.types import ACTION_DIM, CAMERAS, PROPRIO_DIM, ActionChunk, Observation, Policy, SharedPolicy

WARM_UP = 5.0
"""Seconds before counting: the rhythm is learnt in a few rounds."""
HOSTS = 8
"""Processes that the environments are spread over: one each would take Ray longer to start than to measure."""
SET_WAIT = 0.01
"""Seconds that a batcher with a set time waits: Ray Serve's default batch_wait_timeout_s."""


class SleepingTeacher:
    """Costs what a model would, and asks for no motion."""

    needs_images = True

    def __init__(self, fixed: float, item: float):
        self._fixed, self._item = fixed, item

    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """A chunk of one zero action each; its phase is the size of the batch, for the benchmark to read."""
        time.sleep(self._fixed + self._item * len(observations))
        return [ActionChunk(np.zeros((1, ACTION_DIM), np.float32), str(len(observations))) for _ in observations]


class SetWait(Rhythm):
    """The usual dynamic batching, Ray Serve's too: start when the batch is full or its oldest request waited enough."""

    def hold(self, now: float) -> float:
        if not self._waiting or len(self._waiting) >= self._max_batch:
            return 0.0
        hold = next(iter(self._waiting.values())) + self._max_wait - now
        return hold if hold > TICK / 10 else 0.0


def ideal_throughput(clients: int, think: float, fixed: float, item: float, max_batch: int) -> float:
    """Requests per second that no batching policy can exceed, however clever, in the long run.

    With throughput X in batches of mean size b: the machine is busy X/b * fixed + X * item <= 1 of the time. A client's
    round lasts its mean thinking time and at least the batch that it is in, whose mean size over requests,
    E[b^2]/E[b], is at least b: clients/X >= think + fixed + item * b. So X is at most the smaller of
    b / (fixed + item * b), which grows with b, and clients / (think + fixed + item * b), which falls; the best b is
    where they meet, a root of item * b^2 + (think + fixed - clients * item) * b - clients * fixed, or the largest
    allowed. Thinking times may vary as they like about their mean. Clients can't be in two places, nor batches
    fractional: real schedules stay below (`best_schedule`).
    """
    linear = think + fixed - clients * item
    if item > 0:
        size = (math.sqrt(linear**2 + 4 * item * clients * fixed) - linear) / (2 * item)
    else:
        size = clients * fixed / linear
    size = min(max(size, 1.0), max_batch)
    return min(clients / (think + fixed + item * size), size / (fixed + item * size))


def best_schedule(clients: int, think: float, fixed: float, item: float, max_batch: int) -> float:
    """Requests per second of the best division into groups of equal size that take turns, at constant `think`."""
    groups = [count for count in range(1, clients + 1) if math.ceil(clients / count) <= max_batch]
    rounds = (max(g * fixed + clients * item, think + fixed + item * math.ceil(clients / g)) for g in groups)
    return clients / min(rounds)


class Environments:
    """Some environments, a thread each, in a process of their own."""

    def ready(self) -> None:
        """Returns once the process runs."""

    def run(
        self, make: Callable[[Any], Policy], numbers: Sequence[int], begin: float, config: BenchTeacherConfig
    ) -> list[int]:
        """Ask, wait and think; for every request answered in `config.seconds` from `begin` on, its batch's size."""
        sizes: list[int] = []

        def act(number: int) -> None:
            random = np.random.default_rng(number)
            pixels = random.integers(0, 256, (config.image_size, config.image_size, 3), dtype=np.uint8)
            observation = Observation(
                "pick up the milk and place it in the basket",
                np.zeros(PROPRIO_DIM, np.float32),
                {CAMERAS[0]: pixels},
            )
            policy = make(None)
            while time.monotonic() < begin + config.seconds:
                chunk = policy.infer(observation)
                if begin <= time.monotonic() < begin + config.seconds:
                    sizes.append(int(chunk.phase or 0))
                spread = config.think_spread * random.uniform(-1, 1)
                time.sleep(config.think_ms / 1000 * (1 + spread))

        threads = [threading.Thread(target=act, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sizes


def bench_teacher(config: BenchTeacherConfig) -> dict[str, Any]:
    """Measure each number of environments with our batching, with a set wait and with none."""
    begin(config.out, config)
    write_run_record(config.out, config)
    os.environ.setdefault(INLINE[0], str(INLINE[1]))
    cluster.connect()
    rows = {}
    with cli.progress("bench teacher", 3 * len(config.environments)) as advance:
        for count in config.environments:
            rows[str(count)] = bench_count(count, config, advance)
    summary = {
        "ratio_to_ideal": {count: row["ours"]["ratio_to_ideal"] for count, row in rows.items()},
        "environments": rows,
        "fixed_ms": config.fixed_ms,
        "item_ms": config.item_ms,
        "think_ms": config.think_ms,
        "think_spread": config.think_spread,
        "max_batch": config.max_batch,
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def bench_count(count: int, config: BenchTeacherConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """The ideal, and what each way of batching reaches."""
    fixed, item, think = config.fixed_ms / 1000, config.item_ms / 1000, config.think_ms / 1000
    teacher = SharedPolicy("sleeping", functools.partial(_load, fixed, item), execute=1)
    serving = ServingConfig(cpus_per_replica=0, max_batch=config.max_batch)
    ways = {
        "ours": Rhythm(config.max_batch, serving.max_wait_ms / 1000),
        "set_wait": SetWait(config.max_batch, SET_WAIT),
        "at_once": SetWait(config.max_batch, 0.0),
    }
    ideal = ideal_throughput(count, think, fixed, item, config.max_batch)
    row: dict[str, Any] = {
        "ideal": ideal,
        "best_schedule": best_schedule(count, think, fixed, item, config.max_batch),
    }
    numbers = [range(count)[first::HOSTS] for first in range(min(count, HOSTS))]
    hosts: list[Any] = [ray.remote(Environments).options(num_cpus=0).remote() for _ in numbers]
    ray.get([host.ready.remote() for host in hosts])
    for name, rhythm in ways.items():
        with placed(teacher, serving, rhythm) as make:
            begin = time.monotonic() + WARM_UP  # one clock for all processes of a machine
            sizes = ray.get(
                [host.run.remote(make, mine, begin, config) for host, mine in zip(hosts, numbers, strict=True)]
            )
        answered = sum(map(len, sizes))
        batch = sum(map(sum, sizes)) / answered
        throughput = answered / config.seconds
        row[name] = {"requests_per_second": throughput, "ratio_to_ideal": throughput / ideal, "mean_batch": batch}
        advance(f"{count} environments, {name}: {throughput / ideal:.2f} of the ideal")
    for host in hosts:
        ray.kill(host)
    return row


def _load(fixed: float, item: float, _: str) -> SleepingTeacher:
    return SleepingTeacher(fixed, item)


def show(summary: dict[str, Any]) -> Table:
    title = f"Requests per second, a batch of b taking {summary['fixed_ms']:g} + {summary['item_ms']:g} b ms"
    table = Table(title=f"{title} (share of the ideal)", title_justify="left")
    for column in ("environments", "ideal", "best schedule", "ours", "set wait of 10 ms", "at once"):
        table.add_column(column)
    for count, row in summary["environments"].items():
        cells = [
            f"{row[way]['requests_per_second']:.1f} ({row[way]['ratio_to_ideal']:.2f})"
            for way in ("ours", "set_wait", "at_once")
        ]
        table.add_row(count, f"{row['ideal']:.1f}", f"{row['best_schedule']:.1f}", *cells)
    return table
