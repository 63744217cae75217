"""What every student is, whatever its network: perceive images and an instruction once, then decide on K actions.

Notation: B batch, C cameras, S image size, D text width, K chunk length, A numbers in an action, L tokens.

`perceive` is the costly part and runs once a batch. `decide` is cheap: a method of training may run it a second time,
with a text that only training has, or with a learned "none" in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlaad_ray.types import LIBERO

EXACT, NEAR = 1 / 256, 1 / 16
"""Of full deflection: what counts as a right number of an action, and as a nearly right one."""


@dataclass(frozen=True)
class StudentConfig:
    """Everything that fixes the shape of a network; each architecture adds its own. Goes to config.json as it is."""

    architecture: ClassVar[str]

    image_size: int = 96
    """Pixels. Larger or smaller camera images are resized."""
    cameras: tuple[str, ...] = LIBERO.cameras
    proprio: bool = True
    chunk: int = 5
    """K, actions an answer."""
    vocabulary: int = 1024
    text_length: int = 64
    """Tokens kept of an instruction or description."""
    text_width: int = 128
    """D, of an encoded text."""
    action_dim: int = LIBERO.action_dim
    """A, numbers in an action."""
    proprio_dim: int = LIBERO.proprio_dim
    """Numbers of proprioception."""
    gripper: int | None = LIBERO.gripper
    """Which number of an action is the gripper's; None: there is none."""


class Decoded(NamedTuple):
    """An answer in the robot's terms."""

    actions: Tensor
    """[B, K, A] float32 in [-1, 1]."""
    closing: Tensor | None = None
    """[B, K] probability that the gripper is to be closed; None where there is no gripper, or it isn't known."""
    spread: Tensor | None = None
    """[B, K, 3] standard deviation of each translation; None where it isn't known."""


class Student(nn.Module, ABC):
    """forward(images, proprio, instruction) -> output: [B, K, …], in whatever form the architecture decides on actions.

    images [B, C, S, S, 3] uint8; proprio [B, proprio_dim] float32 in the data's units (normalised here; ignored when
    config.proprio is off); instruction [B, L] token ids.

    A network sets summary_width and implements embed_text, perceive, decide and decode (bins.BinnedStudent has the last
    for logits over bins, with the loss that goes with them).
    """

    config: StudentConfig
    proprio_mean: Tensor
    proprio_std: Tensor
    summary_width: int
    """W of `summarise`."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("proprio_mean", torch.zeros(config.proprio_dim))
        self.register_buffer("proprio_std", torch.ones(config.proprio_dim))

    @property
    def dynamic(self) -> bool:
        """Which of its parts run depends on what it sees: it can be no single graph."""
        return False

    @classmethod
    def unfilled(cls, config: StudentConfig) -> Student:
        """One whose weights are yet to be loaded."""
        return cls(config)

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take these weights, which fit."""
        self.load_state_dict(tensors)

    @abstractmethod
    def embed_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D], or the form [B, …] in which the network reads texts; `text_vector` makes [B, D] of it."""

    @abstractmethod
    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        """Everything before the description, for an instruction encoded already -> [B, …] features."""

    @abstractmethod
    def decide(self, features: Tensor, description: Tensor | None = None) -> Tensor:
        """Features and an encoded second text (or none, as at deployment) -> output [B, K, …]."""

    @abstractmethod
    def decode(self, output: Tensor) -> Decoded:
        """What the output tells the robot to do. Needs no weights."""

    def text_vector(self, encoded: Tensor) -> Tensor:
        """An encoded text as one vector: -> [B, D]."""
        return encoded

    def trunk(self) -> list[nn.Module]:
        """What `embed_text` and `perceive` run and `decide` doesn't: nearly all of the work. In bf16 on request."""
        return []

    def summarise(self, features: Tensor) -> Tensor:
        """What `perceive` found as one vector: -> [B, W]. The input of heads that training alone has."""
        return features.flatten(1)

    def imitation_loss(self, output: Tensor, actions: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        """How far the output is from `actions` [B, K, A] -> scalar: a mean, weighted by `weights` [A] or [K, A].

        `smoothing`: TrainConfig.target_sigma, for an output over bins. Here: the absolute error of the actions.
        """
        return ((self.decode(output).actions - actions).abs() * (weights / weights.mean())).mean()

    def right(self, output: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Which numbers of `actions` [B, K, A] the output hits exactly, and which nearly: two of [B, K, A] bool."""
        away = (self.decode(output).actions - actions).abs()
        return away <= EXACT, away <= NEAR

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> encoded [B, …]. A batch repeats few texts, so each distinct one is encoded once."""
        distinct, inverse = torch.unique(tokens, dim=0, return_inverse=True)
        return self.embed_text(distinct)[inverse]

    def forward(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        return self.decide(self.perceive(images, proprio, self.encode_text(instruction)))

    def normalised_proprio(self, proprio: Tensor) -> Tensor:
        return (proprio - self.proprio_mean) / self.proprio_std
