"""VLA-AD: actions with and without a description (dual path), and auxiliary heads for phase and direction."""

from vlaad_ray.methods.method import Method
from vlaad_ray.methods.vlaad.config import AuxiliaryConfig, BothConfig, DualPathConfig
from vlaad_ray.methods.vlaad.data import descriptions, descriptions_and_directions
from vlaad_ray.methods.vlaad.learner import answer, learner
from vlaad_ray.methods.vlaad.losses import loss

DUAL_PATH = Method(
    config=DualPathConfig,
    annotated=True,
    columns=descriptions,
    learner=learner,
    forward=answer,
    loss=loss,
    parts=("full", "image"),
)
AUXILIARY = Method(
    config=AuxiliaryConfig,
    annotated=True,
    columns=descriptions_and_directions,
    phases=True,
    learner=learner,
    forward=answer,
    loss=loss,
    parts=("image", "phase", "direction"),
)
BOTH = Method(
    config=BothConfig,
    annotated=True,
    columns=descriptions_and_directions,
    phases=True,
    learner=learner,
    forward=answer,
    loss=loss,
    parts=("full", "image", "phase", "direction"),
)
