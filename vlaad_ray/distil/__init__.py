"""ActDistill's two stages: what a teacher's layers know of the action (probe), a student that runs fewer (distil).

Both train with the training stage; what they add is before and after it.
"""

from vlaad_ray.distil.probe import probe
from vlaad_ray.distil.stage import distil

__all__ = ["distil", "probe"]
