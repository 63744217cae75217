"""Demonstrations acted out in LIBERO's simulator, from the states that their files hold: do they still succeed?"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlaad_ray.configs import Hdf5Reading, ImportDatasetConfig, UserError, location
from vlaad_ray.envs import find_suite
from vlaad_ray.exchange.hdf5 import opened
from vlaad_ray.exchange.records import Item, Plan
from vlaad_ray.files import local_copy
from vlaad_ray.runtime.over_episodes import over_pieces
from vlaad_ray.summaries import Replayed


def replay(config: ImportDatasetConfig, reading: Hdf5Reading, plan: Plan) -> Sequence[Replayed]:
    """Act out `reading.replay` demonstrations of each file. Raises UserError if fewer succeed than are to."""
    if not reading.replay:
        return ()
    if not config.suite.startswith("libero"):
        raise UserError("--replay needs --suite, one of LIBERO's: the tasks are acted out there")
    files: dict[str, list[Item]] = defaultdict(list)
    for items in plan.items:
        for item in items:
            if len(files[item.where["file"]]) < reading.replay:
                files[item.where["file"]].append(item)
    work = functools.partial(replay_file, suite=config.suite)
    found = [
        Replayed(config.suite, each["task"], each["number"], each["success"])
        for record in over_pieces(list(files.values()), work, "replaying")
        for each in record["replayed"]
    ]
    share = sum(each.success for each in found) / len(found)
    if share < reading.replay_least:
        raise UserError(
            f"{sum(each.success for each in found)} of {len(found)} demonstrations succeed when they are replayed in "
            f"{config.suite}, fewer than --replay-least {reading.replay_least:g}: another LIBERO, or other states"
        )
    return found


def replay_file(items: Sequence[Item], suite: str) -> dict[str, list[dict[str, Any]]]:
    """In a worker: act out demonstrations of one file, and so of one task."""
    from vlaad_ray.envs.libero import LiberoEnv

    entry = find_suite(suite)
    env = entry.make(items[0].task, entry.config())
    assert isinstance(env, LiberoEnv)
    place = location(items[0].where["file"])
    replayed = []
    with local_copy(place) as path, opened(path, place) as file:
        for item in items:
            demo = file["data"][item.where["demo"]]
            if "states" not in demo:
                raise UserError(f"{place}: {item.where['demo']} has no states; leave --replay out")
            env.restore(np.asarray(demo["states"][0]), demo.attrs.get("model_file", ""))
            success = act_out(env, demo["actions"][()])
            replayed.append({"task": item.task, "number": item.number, "success": success})
    env.close()
    return {"replayed": replayed}


def act_out(env: Any, actions: np.ndarray) -> bool:
    """Whether the goal is true after some action."""
    for action in actions:
        env.step(action)
        if env.success():
            return True
    return False
