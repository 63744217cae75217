"""A few episodes of the point of plugins/reach.py, as stored data."""

from __future__ import annotations

from pathlib import Path

from plugins import reach
from plugins.reach_expert import Expert

from vlaad_ray import store
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.types import EpisodeKey, InitState


def write(out: Path, count: int = 2) -> Path:
    for number in range(count):
        env = reach.ReachEnv(number, reach.ReachConfig())
        key = EpisodeKey("reach", number, InitState("stored", number), "reach_expert", 0, "00000000")
        store.write_episode(out, run_episode(env, Expert(1.0, env), EpisodeSpec(key, image_every=1)), {"render": None})
    return out
