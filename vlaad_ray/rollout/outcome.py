"""What is kept of an evaluated episode, written where it ended: in the process of its simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import Location
from vlaad_ray.types import Episode, Outcome


def store_outcome(out: Location, metrics: Mapping[str, Callable[[Episode], Any]], episode: Episode) -> Outcome:
    """Record how an episode ended, in the evaluation directory `out`. `metrics`: name -> what computes it."""
    outcome = Outcome(
        suite=episode.key.suite,
        task=episode.key.task,
        init=episode.key.init.label,
        instruction=episode.instruction,
        success_ever=episode.success_ever,
        success_final=episode.success_final,
        steps=episode.success_step if episode.success_step is not None else episode.budget,
        recorded_steps=len(episode),
        metrics={name: metric(episode) for name, metric in metrics.items()},
    )
    store.write_outcome(out, episode.key.name, outcome)
    return outcome
