"""A routed network whose routes have nothing to do with what it sees: a control for the router (docs/actdistill.md).

No preset to train: importing this module makes its checkpoints readable, as a plugin's are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaad_ray.models.student import STUDENTS
from vlaad_ray.models.student.presets import Preset
from vlaad_ray.models.vla.decoder import routed
from vlaad_ray.models.vla.mini import MiniVla, MiniVlaConfig

SCATTER = 8191
"""A prime: weights of the pixels in the sum by which an observation draws."""


@dataclass(frozen=True)
class DrawnConfig(MiniVlaConfig):
    architecture = "mini_vla_drawn"

    drawn: tuple[tuple[int, ...], ...] = ()
    """Layers that run, of each of the routes to draw from."""


class DrawnVla(MiniVla):
    """Takes one of its routes by chance: the same for the same pictures, whatever else is in the batch."""

    config: DrawnConfig

    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        inputs = self._inputs(images, proprio, instruction)
        pixels = images.flatten(1).to(torch.int64)
        weights = torch.arange(1, pixels.shape[1] + 1, device=pixels.device) % SCATTER + 1
        picked = ((pixels * weights).sum(1) % len(self.config.drawn)).tolist()
        routes = torch.zeros(len(images), self.depth, dtype=torch.bool, device=images.device)
        for row, route in enumerate(picked):
            routes[row, list(self.config.drawn[route])] = True
        return self.queried(routed(self, inputs, routes))


def with_drawn_routes(student: MiniVla, routes: tuple[tuple[int, ...], ...]) -> DrawnVla:
    """The same network, without its router."""
    made = DrawnVla(DrawnConfig(**{**vars(student.config), "routed": False, "route": (), "drawn": routes}))
    kept = made.state_dict().keys()
    made.load_state_dict({name: tensor for name, tensor in student.state_dict().items() if name in kept})
    return made


STUDENTS["mini_vla_drawn"] = Preset(architecture=DrawnConfig.architecture, network=lambda: (DrawnConfig, DrawnVla))
