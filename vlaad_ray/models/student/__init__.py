"""The student: a policy that sees images and an instruction and answers with K actions.

model says what a network is, presets what training has to know of one; small, clip and vla.mini are networks that
answer in bins (bins), clip with CLIP's weights (vlaad_158m, backbone, lora: for training), vla.mini as OpenVLA is made
(mini_vla). text is the tokenizer, preprocess turns pixels into inputs and logits into actions, checkpoint is files on
disk. None of them knows Ray or LIBERO.
"""

from vlaad_ray.models.student.mini_vla import MINI_VLA
from vlaad_ray.models.student.presets import Preset
from vlaad_ray.models.student.small import SMALL
from vlaad_ray.models.student.vlaad_158m import VLAAD_158M

STUDENTS: dict[str, Preset] = {"small": SMALL, "vlaad_158m": VLAAD_158M, "mini_vla": MINI_VLA}
"""--student -> how it comes about. One line makes another (docs/extending.md)."""
