"""Settings of VLA-AD's objectives, and the weights of the loss that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from vlaad_ray.configs.bounds import above, at_least


@dataclass(frozen=True)
class LossWeights:
    """Weight of each part; a part of weight 0 is not computed."""

    full: float
    """Path with the description."""
    image: float
    """Path without it."""
    phase: float = 0.0
    """Auxiliary head that names the phase."""
    direction: float = 0.0
    """Auxiliary head that finds the direction's text."""

    @property
    def auxiliary(self) -> bool:
        return bool(self.phase or self.direction)


class Weighted(Protocol):
    """Settings of any of the three."""

    @property
    def weights(self) -> LossWeights: ...


@dataclass(frozen=True)
class DualPathConfig:
    """L_full + alpha * L_img."""

    alpha: Annotated[float, at_least(0)] = 1.0
    """Weight of the path without description."""

    @property
    def weights(self) -> LossWeights:
        return LossWeights(full=1.0, image=self.alpha)


@dataclass(frozen=True)
class AuxiliaryConfig:
    """L_img + phase_weight * L_phase + direction_weight * L_direction."""

    phase_weight: Annotated[float, above(0)] = 0.1
    """Cross-entropy of a head that names the phase."""
    direction_weight: Annotated[float, above(0)] = 0.05
    """Contrast between a head's embedding and the encoded direction text."""

    @property
    def weights(self) -> LossWeights:
        return LossWeights(full=0.0, image=1.0, phase=self.phase_weight, direction=self.direction_weight)


@dataclass(frozen=True)
class BothConfig:
    """dual_path with the auxiliary terms."""

    alpha: Annotated[float, at_least(0)] = 1.0
    """Weight of the path without description."""
    phase_weight: Annotated[float, above(0)] = 0.1
    """Cross-entropy of a head that names the phase."""
    direction_weight: Annotated[float, above(0)] = 0.05
    """Contrast between a head's embedding and the encoded direction text."""

    @property
    def weights(self) -> LossWeights:
        return LossWeights(full=1.0, image=self.alpha, phase=self.phase_weight, direction=self.direction_weight)
