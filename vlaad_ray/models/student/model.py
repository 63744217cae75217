"""What every student is, whatever its network: perceive images and an instruction once, then decide on K actions.

Notation: B batch, C cameras, S image size, D text width, K chunk length, N bins, L tokens.

`perceive` is the costly part and runs once a batch; only `decide` runs twice for the dual path, with the description
and with a learned "no description", so dual_path costs little more than bc.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlaad_ray.types import ACTION_DIM, CAMERAS, PROPRIO_DIM


@dataclass(frozen=True)
class StudentConfig:
    """Everything that fixes the shape of a network; each architecture adds its own. Goes to config.json as it is."""

    architecture: ClassVar[Literal["small", "clip"]]

    image_size: int = 96
    """Pixels. Larger or smaller camera images are resized."""
    cameras: tuple[str, ...] = CAMERAS
    proprio: bool = True
    chunk: int = 5
    """K, actions an answer."""
    bins: int = 256
    vocabulary: int = 1024
    text_length: int = 64
    """Tokens kept of an instruction or description."""
    text_width: int = 128
    """D, of an encoded text."""


class StudentLogits(NamedTuple):
    """[B, K, 7, N] action logits of each path."""

    image: Tensor
    """From image and instruction (and proprioception): all that exists at deployment."""
    full: Tensor | None
    """The same with the description; None when there was none."""


class Student(nn.Module, ABC):
    """forward(images, proprio, instruction, description) -> StudentLogits.

    images [B, C, S, S, 3] uint8; proprio [B, 8] float32 in metres and radians (normalised here; ignored when
    config.proprio is off); instruction and description [B, L] token ids.

    A network implements embed_text, perceive, decide, trunk and summarise.
    """

    config: StudentConfig
    proprio_mean: Tensor
    proprio_std: Tensor
    summary_width: int
    """W of `summarise`."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("proprio_mean", torch.zeros(PROPRIO_DIM))
        self.register_buffer("proprio_std", torch.ones(PROPRIO_DIM))

    @classmethod
    def unfilled(cls, config: StudentConfig) -> Student:
        """One whose weights are yet to be loaded."""
        return cls(config)

    @abstractmethod
    def embed_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""

    @abstractmethod
    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        """Everything before the description, for an instruction encoded already ([B, D]) -> [B, …] features."""

    @abstractmethod
    def decide(self, features: Tensor, description: Tensor | None = None) -> Tensor:
        """Features and an encoded description ([B, D], or none) -> [B, K, 7, N] logits."""

    @abstractmethod
    def trunk(self) -> list[nn.Module]:
        """What `embed_text` and `perceive` run and `decide` doesn't: nearly all of the work. In bf16 on request."""

    @abstractmethod
    def summarise(self, features: Tensor) -> Tensor:
        """What `perceive` found as one vector: -> [B, W]. The auxiliary heads' input."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]. A batch repeats few texts, so each distinct one is encoded once."""
        distinct, inverse = torch.unique(tokens, dim=0, return_inverse=True)
        return self.embed_text(distinct)[inverse]

    def forward(
        self, images: Tensor, proprio: Tensor, instruction: Tensor, description: Tensor | None = None
    ) -> StudentLogits:
        return self.answer(self.perceive(images, proprio, self.encode_text(instruction)), description)

    def answer(self, features: Tensor, description: Tensor | None) -> StudentLogits:
        """Logits of both paths from features; description [B, L] token ids."""
        full = None if description is None else self.decide(features, self.encode_text(description))
        return StudentLogits(self.decide(features), full)

    def normalised_proprio(self, proprio: Tensor) -> Tensor:
        return (proprio - self.proprio_mean) / self.proprio_std

    def as_actions(self, logits: Tensor) -> Tensor:
        """[B, K * 7 * N] or [B, K, 7 * N] -> [B, K, 7, N]."""
        return logits.view(-1, self.config.chunk, ACTION_DIM, self.config.bins)
