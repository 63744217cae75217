"""Low-rank adapters (LoRA, arXiv 2106.09685) in the attention of both of CLIP's towers, through peft. Training only.

W x becomes W x + (alpha / r) B A x with A [r, in], B [out, r] trained and W frozen; merged, it is one matrix again.
"""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from vlaad_ray.models.student.clip import ClipStudent

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
ALPHA = 2
"""Of the rank: the usual scale, so that another rank needs no other learning rate."""


def add_lora(student: ClipStudent, rank: int) -> None:
    """Freeze both towers and put adapters into them; the rest stays trainable. B is zero: at first nothing changes."""
    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, lora_dropout=0.0, target_modules=list(TARGETS))
    for tower in (student.vision, student.text):
        inject_adapter_in_model(config, tower)


def merge_lora(student: ClipStudent) -> None:
    """Add the adapters to the weights and take them out: the network that is deployed."""
    for tower in (student.vision, student.text):
        for name, module in list(tower.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                parent, _, child = name.rpartition(".")
                setattr(tower.get_submodule(parent), child, module.get_base_layer())
