"""A metric from outside: how long the way was that the point of reach.py went."""

import dataclasses

import numpy as np
import reach  # noqa: F401  puts its suite into SUITES

from vlaad_ray.envs import SUITES
from vlaad_ray.evaluate.metrics import METRICS


def way_gone(episode):
    return float(np.linalg.norm(np.diff(episode.proprio[:, :2], axis=0), axis=1).sum())


METRICS["way_gone"] = way_gone
SUITES["reach"] = dataclasses.replace(SUITES["reach"], metrics=("way_gone",))
