"""Search for hyperparameters with Ray Tune: what may vary (space), one trial, all of them (stage), the results."""

from vlaad_ray.experiments.sweep.results import show
from vlaad_ray.experiments.sweep.stage import sweep

__all__ = ["show", "sweep"]
