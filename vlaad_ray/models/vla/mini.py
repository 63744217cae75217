"""OpenVLA's architecture small enough to train on a CPU: a ViT, a projector, a Llama decoder; actions in parallel.

The decoder reads the patches of all cameras, proprioception as one token, the instruction's tokens, and one learned
query a step of the chunk, whose last states become the actions. All tokens attend to all: nothing is decoded one by
one. Its layers can be gated and skipped (layered.py).

Notation: B batch, C cameras, S image size, P patches of a picture, V width of the ViT, D width of the decoder, L tokens
of a text, T tokens of the decoder, K chunk length, A numbers in an action, N bins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from vlaad_ray.models.openvla.model import Projector
from vlaad_ray.models.openvla.vision import PATCH, Block, PatchEmbed, TowerConfig
from vlaad_ray.models.student.bins import BinnedConfig, BinnedStudent
from vlaad_ray.models.student.preprocess import normalise_images
from vlaad_ray.models.student.text import PAD
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.decoder import gated, routed
from vlaad_ray.models.vla.layered import Inputs, Layered
from vlaad_ray.models.vla.router import Router, hard_gates, routes_of

STEM_WIDTH = 32
STEM_STRIDE = 2


@dataclass(frozen=True)
class MiniVlaConfig(BinnedConfig):
    """About 11 M parameters. `image_size` is a multiple of 14; `text_width` is that of a text as one vector."""

    architecture = "mini_vla"

    image_size: int = 84
    text_length: int = 32
    depth: int = 12
    """Decoder layers."""
    width: int = 256
    """D."""
    mlp_width: int = 688
    heads: int = 4
    vision_depth: int = 4
    vision_width: int = 128
    """V."""
    vision_heads: int = 2
    stem: bool = True
    """Convolutions before the patches."""
    routed: bool = False
    """Has a router, which says for each observation what layers run."""
    threshold: float = 0.5
    """Of the router's probabilities: a layer runs above it."""
    route: tuple[int, ...] = ()
    """The layers that always run, the router not asked; empty: all, or those that the router says."""

    @property
    def sizes(self) -> routes.LlamaSizes:
        return routes.LlamaSizes(
            self.depth, self.width, self.mlp_width, self.heads, self.heads, self.width // self.heads
        )

    @property
    def llama(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_attention_heads=self.heads,
            num_hidden_layers=self.depth,
            attn_implementation="sdpa",
        )


class Stem(nn.Module):
    """[B, 3, S, S] -> [B, P, V]: two convolutions at half the resolution, then the patches, 14 pixels as OpenVLA's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, STEM_WIDTH, 4, stride=STEM_STRIDE, padding=1)
        self.norm = nn.LayerNorm(STEM_WIDTH)
        self.mix = nn.Conv2d(STEM_WIDTH, STEM_WIDTH, 3, padding=1)
        patch = PATCH // STEM_STRIDE
        self.proj = nn.Conv2d(STEM_WIDTH, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.relu(self.down(pixels))
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over channels, as in small.FilmBlock
        x = x + functional.relu(self.mix(normed))
        return self.proj(x).flatten(2).transpose(1, 2)


class Vision(nn.Module):
    """[B, C, 3, S, S] -> [B, C * P, V]: one ViT for all cameras, each with its own positions."""

    def __init__(self, config: MiniVlaConfig) -> None:
        super().__init__()
        width, patches = config.vision_width, (config.image_size // PATCH) ** 2
        self.patches = Stem(width) if config.stem else PatchEmbed(width)
        self.positions = nn.Parameter(torch.randn(len(config.cameras), patches, width) * 0.02)
        tower = TowerConfig(width, config.vision_depth, config.vision_heads, 4 * width)
        self.blocks = nn.ModuleList(Block(tower) for _ in range(config.vision_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        batch, cameras = pixels.shape[:2]
        x = self.patches(pixels.flatten(0, 1)) + self.positions.repeat(batch, 1, 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).unflatten(0, (batch, cameras)).flatten(1, 2)


class MiniVla(BinnedStudent, Layered):
    """Features [B, K, D]: the last states of the action queries."""

    config: MiniVlaConfig

    def __init__(self, config: MiniVlaConfig) -> None:
        if not fits(config.image_size):
            raise ValueError(f"image_size {config.image_size} is not a multiple of {PATCH}")
        super().__init__(config)
        self.depth, self.width = config.depth, config.width
        self.route = routes.of_layers(config.route, config.depth, "route") if config.route else None
        llama, width = config.llama, config.width
        self.vision = Vision(config)
        self.projector = Projector(config.vision_width, width)
        self.words = nn.Embedding(config.vocabulary, width)
        self.queries = nn.Parameter(torch.randn(config.chunk, width) * 0.02)
        if config.proprio:
            self.proprio = nn.Sequential(nn.Linear(config.proprio_dim, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(LlamaDecoderLayer(llama, index) for index in range(config.depth))
        self.rotary = LlamaRotaryEmbedding(llama)
        self.router = Router(width, config.depth) if config.routed else None
        self.summary_width = config.chunk * width
        self.say = nn.Linear(width, config.text_width)
        self.no_words = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = LlamaRMSNorm(width, eps=llama.rms_norm_eps)
        self.head = nn.Sequential(
            nn.Linear(width + config.text_width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, config.action_dim * config.bins),
        )
        for module in (self.layers, self.words):
            module.apply(_initialise)
        if self.route is not None:  # what no answer comes from is not trained: workers would wait for its gradient
            unused = [layer for layer, runs in zip(self.layers, self.route, strict=True) if not runs]
            for part in (*unused, *([self.router] if self.router else [])):
                part.requires_grad_(False)

    # --------------------------------------------------------------------------------------------- as a student

    @property
    def dynamic(self) -> bool:
        return self.router is not None and self.route is None

    def embed_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, L, D + 1]: the tokens' embeddings, and 1 where there is one, 0 at padding."""
        present = (tokens != PAD)[..., None]
        words = self.words(tokens)
        return torch.cat([words * present, present.to(words.dtype)], dim=-1)

    def text_vector(self, encoded: Tensor) -> Tensor:
        words, present = encoded[..., :-1], encoded[..., -1:]
        return self.say(words.sum(1) / present.sum(1).clamp(min=1))

    def perceive(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Tensor:
        inputs = self._inputs(images, proprio, instruction)
        return self.queried(self.last_state(inputs))

    def decide(self, features: Tensor, description: Tensor | None = None) -> Tensor:
        said = self.say(self.no_words) if description is None else self.text_vector(description)
        said = said.expand(len(features), -1)[:, None].expand(-1, features.shape[1], -1)
        return self.as_actions(self.head(torch.cat([self.norm(features), said.to(features.dtype)], dim=-1)).flatten(1))

    def trunk(self) -> list[nn.Module]:
        parts = [self.vision, self.projector, self.words, self.layers]
        return [*parts, self.proprio] if self.config.proprio else parts

    # ----------------------------------------------------------------------------------------------- its layers

    def embed(self, images: Tensor, proprio: Tensor, instruction: Tensor, actions: Tensor | None = None) -> Inputs:
        return self._inputs(images, proprio, self.encode_text(instruction))

    def layer(self, index: int, hidden: Tensor, inputs: Inputs) -> Tensor:
        cos, sin, *mask = inputs.shared
        return run_layer(self.layers[index], hidden, cos, sin, mask[0] if mask else None)

    def readout(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        return self.decide(self.queried(hidden))

    def queried(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, K, D]: the action queries', the last tokens."""
        return hidden[:, -self.config.chunk :]

    def last_state(self, inputs: Inputs) -> Tensor:
        """Through all layers, those of the config's route, or those that the router says -> [B, T, D].

        In training every layer runs and the router's gates have a gradient.
        """
        if self.route is not None:
            hidden = inputs.hidden
            for index in (index for index, runs in enumerate(self.route) if runs):
                hidden = self.layer(index, hidden, inputs)
            return hidden
        if self.router is None:
            return gated(self, inputs)[-1]
        logits = self.router(inputs)
        if self.training:
            return gated(self, inputs, hard_gates(logits))[-1]
        return routed(self, inputs, routes_of(logits, self.config.threshold))

    def _angles(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[1, T, 1, head] cosine and sine of rotary positions, the sine with the sign that `rotated` needs."""
        cos, sin = self.rotary(hidden, positions)
        half = sin.shape[-1] // 2
        return cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]

    def _inputs(self, images: Tensor, proprio: Tensor, text: Tensor) -> Inputs:
        """text [B, L, D + 1]: as encode_text has it.

        Tokens: vision, proprioception, text, queries. Positions leave room for the longest text, so that it makes no
        difference whether padding is cut off.
        """
        batch, length = text.shape[:2]
        # On a GPU, looking at the numbers would stall it; in an exported graph it would freeze them in.
        looks = text.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks:
            text = text[:, : int(text[..., -1].sum(1).max())]
        vision = self.projector(self.vision(normalise_images(images)))
        parts = [vision, text[..., :-1]]
        if self.config.proprio:
            parts.insert(1, self.proprio(self.normalised_proprio(proprio))[:, None])
        parts.append(self.queries.expand(batch, -1, -1))
        sizes = [part.shape[1] for part in parts]
        place = torch.arange(sum(sizes), device=text.device)
        pictured, words = sizes[0], sum(sizes[:-2])
        queries = words + text.shape[1]
        said = text[..., -1] > 0.5
        present = torch.cat([said.new_ones(batch, words), said, said.new_ones(batch, self.config.chunk)], dim=1)
        positions = (place + (length - text.shape[1]) * (place >= queries)).expand(batch, -1)
        hidden = torch.cat([part.to(torch.float32) for part in parts], dim=1)
        device = hidden.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        shared = [each.to(computed).expand(batch, -1, -1, -1) for each in self._angles(hidden, positions[:1])]
        if not (looks and bool(said.all())):
            shared.append(present[:, None, None, :].expand(-1, 1, place.shape[0], -1))
        return Inputs(
            hidden=hidden,
            present=present,
            positions=positions,
            vision=(place < pictured).expand(batch, -1),
            text=present & (place >= words) & (place < queries),
            shared=tuple(shared),
        )


def run_layer(layer: LlamaDecoderLayer, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """What `layer` computes without a causal mask, [B, T, D] -> [B, T, D], in the dtype of `cos`.

    cos, sin [B, T, 1, head]; mask [B, 1, T, T] bool: what is attended to; None: everything. A training step on a CPU
    takes two thirds of the time of the module's own forward: attention's backward in PyTorch alone took a third of
    it, and slicing for rotary positions, whose backward fills zeros, a tenth.
    """
    attention, mlp = layer.self_attn, layer.mlp
    x = rms_norm(layer.input_layernorm, hidden).to(cos.dtype)
    query, key, value = (
        project(x).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key, value = (each.transpose(1, 2) for each in (rotated(query, cos, sin), rotated(key, cos, sin), value))
    if hidden.device.type == "cpu" and torch.is_grad_enabled():
        scores = query @ key.transpose(-1, -2) * attention.scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        mixed = scores.softmax(-1).to(value.dtype) @ value
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    x = rms_norm(layer.post_attention_layernorm, hidden).to(cos.dtype)
    after: Tensor = hidden + mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    return after


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [B, T, heads, head] times cosine, its halves swapped times the signed sine."""
    return x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin


def rms_norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    scaled: Tensor = norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))
    return scaled


def fits(image_size: int) -> bool:
    """Whether pictures of this size are whole patches."""
    return image_size % PATCH == 0 and image_size >= PATCH


def _initialise(module: nn.Module) -> None:
    """Llama's: normal, 0.02; norms stay one."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def with_router(student: MiniVla, threshold: float = 0.5) -> MiniVla:
    """The same network with a new router, whose gates are all open."""
    return _with(student, replace(student.config, routed=True, threshold=threshold, route=()))


def on_route(student: MiniVla, layers: tuple[int, ...]) -> MiniVla:
    """The same network, of which these layers always run and no others; a router stays unused."""
    return _with(student, replace(student.config, route=layers))


def _with(student: MiniVla, config: MiniVlaConfig) -> MiniVla:
    made = MiniVla(config)
    made.load_state_dict({**made.state_dict(), **student.state_dict()})
    return made.train(student.training)


def cost(config: MiniVlaConfig, words: int = 12) -> routes.Cost:
    """FLOPs of an answer to an instruction of so many tokens; its vision runs block by block for each camera."""
    patches, width = (config.image_size // PATCH) ** 2, config.vision_width
    cameras = len(config.cameras)
    patch = 2 * patches * 3 * PATCH**2 * width
    if config.stem:
        half = (config.image_size // STEM_STRIDE) ** 2
        stem = half * STEM_WIDTH * (3 * 4**2 + STEM_WIDTH * 3**2)
        patch = 2 * (stem + patches * STEM_WIDTH * (PATCH // STEM_STRIDE) ** 2 * width)
    blocks = config.vision_depth * routes.vit_block_flops(patches, width, 4 * width)
    projector = 2 * patches * (4 * width * width + 4 * width * config.width + config.width**2)
    state = 2 * config.width * (config.proprio_dim + config.width) if config.proprio else 0
    head = 2 * config.chunk * 2 * config.width * (config.width + config.text_width + config.action_dim * config.bins)
    tokens = cameras * patches + config.proprio + words + config.chunk
    fixed = cameras * (patch + blocks + projector) + state + head
    return routes.Cost(fixed, config.sizes.layer_flops(tokens), config.depth)
