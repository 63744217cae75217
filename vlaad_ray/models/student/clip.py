"""The 158 M student: CLIP's ViT-B/16 and its text tower with 248 positions (Long-CLIP, arXiv 2403.15378), and a decoder
whose K queries read image patches, text and proprioception and answer with A x N bins each.

Notation: B batch, C cameras, S image size, P tokens a picture (patches and the class token), D text width, W width of
the decoder, K chunk length, A numbers in an action, N bins, L tokens.

The towers are transformers' own. In training they are frozen but for LoRA (lora.py); a deployed student has that merged
into their weights, and this module never needs peft.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from transformers.initialization import no_init_weights

from vlaad_ray.models.student.bins import BinnedConfig, BinnedStudent
from vlaad_ray.models.student.model import Student, StudentConfig
from vlaad_ray.models.student.preprocess import normalise_images

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's image normalisation, for pixels in [0, 1] (arXiv 2103.00020)."""


@dataclass(frozen=True)
class ClipConfig(BinnedConfig):
    """Defaults: Long-CLIP ViT-B/16. The towers' shape is that of the checkpoint they come from."""

    architecture = "clip"

    image_size: int = 224
    cameras: tuple[str, ...] = ("agentview",)
    vocabulary: int = 49408
    """Rows of the token embedding."""
    text_length: int = 248
    """Text positions."""
    text_width: int = 512
    end_token: int = 49407
    """Its state stands for the whole text."""
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_mlp: int = 3072
    text_layers: int = 12
    text_heads: int = 8
    text_mlp: int = 2048
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    width: int = 512
    """W, of the decoder."""
    layers: int = 2
    heads: int = 8
    mlp: int = 896


def vision_config(config: ClipConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=config.vision_mlp,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=config.activation,
        layer_norm_eps=config.layer_norm_eps,
    )


def text_config(config: ClipConfig) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.text_width,
        intermediate_size=config.text_mlp,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.text_length,
        hidden_act=config.activation,
        layer_norm_eps=config.layer_norm_eps,
        eos_token_id=config.end_token,
    )


class Attention(nn.Module):
    """Multi-head attention of x [B, Q, W] over memory [B, T, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.output = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: with K queries the scores are small, and every export knows these operations.
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = self.output((attention.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return mixed


class DecoderLayer(nn.Module):
    """The K queries look at each other, then at what was perceived. Norms come first."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.width
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention, self.cross_attention = (Attention(width, config.heads) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp), nn.GELU(), nn.Linear(config.mlp, width))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, normed)
        x = x + self.cross_attention(self.cross_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))


class ClipStudent(BinnedStudent):
    """Features [B, T, W]: the encoded instruction, proprioception if any, then P tokens of each camera."""

    config: ClipConfig
    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        width = config.width
        self.vision = CLIPVisionModel(vision_config(config))
        self.text = CLIPTextModel(text_config(config))
        self.from_vision = nn.Linear(config.vision_width, width)
        self.from_text = nn.Linear(config.text_width, width)
        if config.proprio:
            self.from_proprio = nn.Linear(config.proprio_dim, width)
        self.camera = nn.Parameter(torch.randn(len(config.cameras), 1, width) * 0.02)
        self.no_description = nn.Parameter(torch.randn(width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        self.memory_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.decoder = nn.ModuleList([DecoderLayer(config) for _ in range(config.layers)])
        self.bins = nn.Linear(width, config.action_dim * config.bins)
        self.summary_width = width
        scale = [[[1 / (255 * std)]] for std in PIXEL_STD]
        shift = [[[mean / std]] for mean, std in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]
        self.register_buffer("pixel_scale", torch.tensor(scale), persistent=False)
        self.register_buffer("pixel_shift", torch.tensor(shift), persistent=False)

    @classmethod
    def unfilled(cls, config: StudentConfig) -> Student:
        """Drawing random weights takes seconds, and touches memory that loading then replaces."""
        with no_init_weights():
            return super().unfilled(config)

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """The weights stay where the file is mapped: copied, a process would hold their 630 MB twice for a moment."""
        self.load_state_dict(tensors, assign=True)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]: the last layer's state of the first end token. What follows it is never looked at."""
        end = (tokens == self.config.end_token).to(torch.int).argmax(1)
        # An exported graph keeps the full length: a number read from the tokens would be frozen into it.
        longest = tokens.shape[1] if torch.compiler.is_compiling() else int(end.max()) + 1
        states = self.text(tokens[:, :longest]).last_hidden_state
        encoded: Tensor = states[torch.arange(len(states), device=states.device), end]
        return encoded

    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        """-> [B, T, W] with T = 1 + 1 (proprioception) + C * P."""
        pixels = normalise_images(images, self.pixel_scale, self.pixel_shift)
        seen = self.vision(pixels.flatten(0, 1)).last_hidden_state
        # CLIP puts this norm on the class token alone; the patches live in the same space.
        patches = self.from_vision(self.vision.post_layernorm(seen)).unflatten(0, images.shape[:2]) + self.camera
        tokens = [self.from_text(instruction)[:, None], patches.flatten(1, 2)]
        if self.config.proprio:
            tokens.insert(1, self.from_proprio(self.normalised_proprio(proprio))[:, None])
        return torch.cat(tokens, dim=1)

    def decide(self, features: Tensor, description: Tensor | None = None) -> Tensor:
        """The texts are added to the queries, so that already the first look at the picture knows what to look for."""
        if description is None:
            described = self.no_description.expand(len(features), 1, -1)
        else:
            described = self.from_text(description)[:, None]
        memory = self.memory_norm(torch.cat([features, described.to(features.dtype)], dim=1))
        x = self.queries + features[:, :1] + described
        for layer in self.decoder:
            x = layer(x, memory)
        return self.as_actions(self.bins(self.norm(x)))

    def trunk(self) -> list[nn.Module]:
        return [self.text, self.vision]

    def summarise(self, features: Tensor) -> Tensor:
        return features.mean(1)
