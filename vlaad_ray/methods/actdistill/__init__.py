"""ActDistill (arXiv 2511.18082): what each of a teacher's layers knows of the action, and a student that runs fewer.

Stage 1 is --objective probe, which `vlaad probe` runs; stage 2 is --objective actdistill, which `vlaad distil` runs.
"""

from vlaad_ray.configs.distil import ActDistillConfig, HeadsSettings
from vlaad_ray.methods.actdistill import kept, learner, probing
from vlaad_ray.methods.method import Method

PROBE = Method(
    config=HeadsSettings,
    check=probing.check,
    learner=probing.learner,
    loss=probing.loss,
    parts=("first", "last"),
    leave=probing.leave,
)
ACTDISTILL = Method(
    config=ActDistillConfig,
    reads=learner.reads,
    check=learner.check,
    stored=kept.columns,
    phases=True,
    learner=learner.learner,
    loss=learner.loss,
    parts=learner.PARTS,
)
