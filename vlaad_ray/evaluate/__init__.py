"""Stage 5: a policy acts closed loop on held-out init states; success rates with intervals, videos, comparisons."""

from vlaad_ray.evaluate.perturbed import evaluate_family, show_family
from vlaad_ray.evaluate.stage import evaluate, show

__all__ = ["evaluate", "evaluate_family", "show", "show_family"]
