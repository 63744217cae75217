"""Simulator speed against LIBERO's own loop, in alternating blocks of one run: a drifting machine cancels out."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import BenchRolloutConfig, EnvConfig
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.types import InitState

CHUNK = 5
"""Control steps between two queries of the policy in the evaluation row (the paper's K)."""
INIT = InitState("stored", 0)
_block: Callable[[], None]
"""In a contestant's process: what runs one block of control steps."""


def bench_rollout(config: BenchRolloutConfig) -> dict[str, Any]:
    """Control steps per second and core: LIBERO's own loop with two 128-px cameras against ours, suite by suite."""
    begin(config.out, config)
    write_run_record(config.out, config)
    suites = {}
    with cli.progress("bench rollout", len(config.suites)) as advance:
        for suite in config.suites:
            suites[suite] = bench_suite(suite, config)
            advance(suite)
    summary = {
        "suites": suites,
        "ratio_to_stock": {
            mode: min(entry["ratio_to_stock"][mode] for entry in suites.values())
            for mode in ("collection", "evaluation", "exact")
        },
        "chunk": CHUNK,
        "image_size": EnvConfig().image_size,
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def bench_suite(suite: str, config: BenchRolloutConfig) -> dict[str, Any]:
    """Medians over alternating blocks. A process each, because LIBERO's renderer draws into whatever GL context is
    current and would borrow ours; only one works at a time.
    """
    makers = {"stock": _stock, "exact": _exact, "collection": _collection, "evaluation": _evaluation}
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, context) for name in makers}
    for name, pool in pools.items():
        pool.submit(_prepare, makers[name], suite, config.task, config.steps).result()
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(config.repeats):
        for name, pool in pools.items():
            seconds[name].append(pool.submit(_timed_block).result())
    for pool in pools.values():
        pool.shutdown()
    ratios = {
        name: statistics.median(stock / own for stock, own in zip(seconds["stock"], seconds[name], strict=True))
        for name in makers
        if name != "stock"
    }
    return {
        "steps_per_second": {name: config.steps / statistics.median(times) for name, times in seconds.items()},
        "ratio_to_stock": ratios,
        "block_seconds": seconds,
    }


def _prepare(make: Callable[[str, int, int], Callable[[], None]], suite: str, task: int, steps: int) -> None:
    global _block
    os.environ["LP_NUM_THREADS"] = "0"
    _block = make(suite, task, steps)
    _block()  # the first block loads meshes into the renderer
    # Robosuite has asked for EGL's end at exit; its contexts must go before that, or each complains.
    atexit.register(_drop_block)


def _drop_block() -> None:
    global _block
    del _block
    gc.collect()


def _timed_block() -> float:
    start = time.perf_counter()
    _block()
    return time.perf_counter() - start


def _stock(suite: str, task: int, steps: int) -> Callable[[], None]:
    """The loop of LIBERO's own evaluation: every step returns both images."""
    from vlaad_ray.envs.libero import load_benchmark

    benchmark = load_benchmark(suite)
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    env = OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(task),
        camera_heights=EnvConfig().image_size,
        camera_widths=EnvConfig().image_size,
        ignore_done=True,
    )
    env.seed(0)
    env.reset()
    env.set_init_state(benchmark.get_task_init_states(task)[INIT.index])
    actions = _actions(steps)

    def block() -> None:
        for action in actions:
            env.step(action)

    return block


def _exact(suite: str, task: int, steps: int) -> Callable[[], None]:
    """The same in exact mode: both images at every step."""
    from vlaad_ray.envs.libero import LiberoEnv

    env = LiberoEnv(suite, task, EnvConfig(render="exact"))
    env.reset(INIT)
    actions = _actions(steps)

    def block() -> None:
        for action in actions:
            env.step(action)
            env.observe(images=True)

    return block


def _collection(suite: str, task: int, steps: int) -> Callable[[], None]:
    """Collection in fast mode: the teacher acts, both images are drawn and JPEG-encoded at every step."""
    from vlaad_ray.envs.libero import LiberoEnv
    from vlaad_ray.teachers.scripted.expert import ScriptedTeacher

    env = LiberoEnv(suite, task, EnvConfig(render="fast"))
    teacher = ScriptedTeacher(env)

    def block() -> None:
        for _ in range(steps):
            observation = env.observe(images=True)
            for image in observation.images.values():
                store.encode_jpeg(image)
            env.step(teacher.infer(observation).actions[0])

    env.reset(INIT)
    teacher.reset(env.instruction)
    return block


def _evaluation(suite: str, task: int, steps: int) -> Callable[[], None]:
    """Evaluation in fast mode: images only when a policy that plans CHUNK steps ahead is asked; its own time not
    counted, as in the stock loop.
    """
    from vlaad_ray.envs.libero import LiberoEnv

    env = LiberoEnv(suite, task, EnvConfig(render="fast"))
    env.reset(INIT)
    actions = _actions(steps)

    def block() -> None:
        for step, action in enumerate(actions):
            env.observe(images=step % CHUNK == 0)
            env.step(action)
            env.success()

    return block


def _actions(steps: int) -> np.ndarray:
    """[steps, 7] the same gentle random motion for every contestant, with the gripper open."""
    random = np.random.default_rng(0)
    return np.concatenate([random.uniform(-0.3, 0.3, (steps, 6)), -np.ones((steps, 1))], axis=1)


def show(summary: dict[str, Any]) -> Table:
    table = Table(title="Control steps per second and core (ratio to LIBERO's own loop)", title_justify="left")
    for column in (
        "suite",
        "stock, 2 cameras",
        "exact, every frame",
        "collection, every frame",
        f"evaluation, K={CHUNK}",
    ):
        table.add_column(column)
    for suite, entry in summary["suites"].items():
        speed, ratio = entry["steps_per_second"], entry["ratio_to_stock"]
        cells = [f"{speed[mode]:.1f} ({ratio[mode]:.2f}x)" for mode in ("exact", "collection", "evaluation")]
        table.add_row(suite, f"{speed['stock']:.1f}", *cells)
    return table
