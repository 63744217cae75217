"""OpenVLA's two vision transformers, with the parameter names that its checkpoints store.

Those are timm's names (vit_large_patch14_reg4_dinov2 and vit_so400m_patch14_siglip_224), except that LayerScale is
`scale_factor`, which timm calls `gamma`. timm itself is not needed, and hence no torchvision, whose CPU build is hard
to come by.

Notation: B batch, S image size in pixels, P patches of an image, W width of a tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 14
"""Pixels along the side of a patch."""


@dataclass(frozen=True)
class TowerConfig:
    width: int
    depth: int
    heads: int
    mlp_width: int
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False
    """Parameters of the pooling head: in the checkpoint, without part in OpenVLA's features."""


TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(
        width=1024, depth=24, heads=16, mlp_width=4096, registers=4, class_token=True, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TowerConfig(width=1152, depth=27, heads=16, mlp_width=4304, attention_pool=True),
}
"""timm id, as in config.json -> architecture."""


class Tower(nn.Module):
    """A pre-norm ViT. `forward` stops at the second-to-last block: the features that OpenVLA was trained on."""

    def __init__(self, config: TowerConfig, image_size: int):
        super().__init__()
        width = config.width
        self.config = config
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.empty(1, config.registers, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // PATCH) ** 2, width))
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, P, W] patches after block depth - 2 (from 0), not normed."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [self.cls_token] if self.config.class_token else []
        prefix += [self.reg_token] if self.config.registers else []
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return x[:, self.config.class_token + self.config.registers :]


class PatchEmbed(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, P, W], row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Mlp(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: only its parameters, so that a checkpoint's keys all have a place."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(config)
