"""What an outcome says of an episode beside its success. A new metric is a function here and a line in METRICS.

A suite names those that make sense for its robot (Suite.metrics). A metric sees the finished Episode, in the process of
its simulator, and returns what JSON can hold; its name becomes a key of the stored outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlaad_ray import plugins
from vlaad_ray.semantics import phases
from vlaad_ray.semantics.smoothness import gripper_flips, meant_gripper
from vlaad_ray.types import Episode

Metric = Callable[[Episode], Any]


def flips(episode: Episode) -> int:
    """Reversals of the gripper's command."""
    return gripper_flips(episode.actions[:, -1])


def flips_meant(episode: Episode) -> int:
    """Those of them that are not taken back."""
    return gripper_flips(meant_gripper(episode.actions[:, -1]))


def last_phase(episode: Episode) -> str:
    """What was going on at the end, by the rules on proprioception."""
    meant = meant_gripper(episode.actions[:, -1])
    return phases.classify(episode.proprio, meant, episode.instruction)[-1]


METRICS: dict[str, Metric] = {
    "gripper_flips": flips,
    "gripper_flips_meant": flips_meant,
    "last_phase": last_phase,
}
"""Key in the outcome -> what computes it."""


def find_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics by name, a plugin's if need be. Raises UserError for an unknown one."""
    return {name: plugins.lookup("metric", METRICS, name) for name in names}
