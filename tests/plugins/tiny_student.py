"""An architecture from outside: one convolution and two linear layers; its actions are plain numbers, without bins."""

import dataclasses

import torch
from torch import Tensor, nn

from vlaad_ray.models.student import STUDENTS
from vlaad_ray.models.student.model import Decoded, Student, StudentConfig
from vlaad_ray.models.student.preprocess import normalise_images
from vlaad_ray.models.student.presets import Preset


@dataclasses.dataclass(frozen=True)
class TinyConfig(StudentConfig):
    architecture = "tiny"
    image_size: int = 32


class TinyStudent(Student):
    def __init__(self, config):
        super().__init__(config)
        self.text = nn.EmbeddingBag(config.vocabulary, config.text_width)
        self.eyes = nn.Conv2d(3 * len(config.cameras), 8, kernel_size=8, stride=8)
        self.summary_width = 8 * (config.image_size // 8) ** 2 + config.proprio_dim + config.text_width
        self.head = nn.Linear(self.summary_width + config.text_width, config.chunk * config.action_dim)

    def embed_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens)

    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        seen = self.eyes(normalise_images(images).flatten(1, 2)).relu().flatten(1)
        return torch.cat([seen, self.normalised_proprio(proprio), instruction], dim=1)

    def decide(self, features: Tensor, description: Tensor | None = None) -> Tensor:
        said = torch.zeros_like(features[:, : self.config.text_width]) if description is None else description
        return self.head(torch.cat([features, said], dim=1)).tanh().unflatten(1, (-1, self.config.action_dim))

    def decode(self, output: Tensor) -> Decoded:
        return Decoded(output.float())


STUDENTS["tiny"] = Preset(architecture="tiny", network=lambda: (TinyConfig, TinyStudent))
