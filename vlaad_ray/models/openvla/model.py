"""OpenVLA's network: two vision towers, a projector and Llama 2, named as its checkpoints name them.

Notation: B batch, S image size, P patches, D width of the language model, V rows of its vocabulary, A action tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.models.openvla.vision import Tower, TowerConfig


@dataclass(frozen=True)
class OpenVlaConfig:
    """What of config.json determines the network and the meaning of its action tokens."""

    towers: tuple[TowerConfig, TowerConfig]
    image_size: int
    """S, pixels: both towers see the same size."""
    language: LlamaConfig
    pad_to_multiple_of: int
    """Rows that pad the vocabulary: the action tokens are the last ones before these."""
    action_bins: int

    @property
    def action_vocabulary_end(self) -> int:
        """One past the highest action token (32,000 in the published checkpoints)."""
        return self.language.vocab_size - self.pad_to_multiple_of


class OpenVlaModel(nn.Module):
    def __init__(self, config: OpenVlaConfig):
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(sum(tower.width for tower in config.towers), config.language.hidden_size)
        self.language_model = LlamaForCausalLM(config.language)

    @classmethod
    def on_meta(cls, config: OpenVlaConfig) -> OpenVlaModel:
        """The module tree without memory, to which weights are assigned; then call `ready`."""
        with torch.device("meta"):
            return cls(config)

    def ready(self, device: torch.device) -> OpenVlaModel:
        """After the weights are in place on `device`: what no checkpoint stores, and evaluation mode."""
        # Rotary frequencies stay fp32 whatever the weights are: in bf16 far positions would blur.
        self.language_model.model.rotary_emb = LlamaRotaryEmbedding(self.config.language).to(device)
        return self.eval().requires_grad_(False)

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 6, S, S], the towers' normalised images stacked -> [B, P, D]."""
        return self.projector(self.vision_backbone(pixels))

    @torch.inference_mode()
    def decode(self, pixels: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[Tensor, Tensor]:
        """Greedy decoding of a fixed number of tokens: no token, the end of text included, stops it.

        pixels: [B, 6, S, S] in the model's dtype; prompts: B lists of token ids, each led by the begin token, of any
        lengths. The image's patches follow the begin token, as in training. Shorter rows are padded on the left, and
        neither attended to nor counted in the positions. Returns [B, A] int64 and the logits [B, A, V] that they are
        the maxima of.
        """
        patches = self.embed(pixels)
        words = self.language_model.get_input_embeddings()
        rows = []
        for prompt, row in zip(prompts, patches, strict=True):
            text = words(torch.tensor(prompt, device=row.device))
            rows.append(torch.cat([text[:1], row, text[1:]]))
        lengths = torch.tensor([len(row) for row in rows])
        inputs = pad_sequence(rows, batch_first=True, padding_side="left")
        columns = torch.arange(inputs.shape[1] + tokens - 1)
        seen = (columns >= inputs.shape[1] - lengths[:, None]).to(inputs.device)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        padded = len(set(lengths.tolist())) > 1  # else no mask: attention is quicker without

        cache = DynamicCache(config=self.config.language)
        chosen: list[Tensor] = []
        logits: list[Tensor] = []
        start, end = 0, inputs.shape[1]
        for _ in range(tokens):
            # By place: transformers 5.24 renamed past_key_values to cache, and 5.40 will drop the old name.
            output = self.language_model(
                None,
                seen[:, :end].long() if padded else None,
                positions[:, start:end],
                cache,
                inputs,
                use_cache=True,
                logits_to_keep=1,
            )
            logits.append(output.logits[:, -1])
            chosen.append(logits[-1].argmax(-1))
            inputs = words(chosen[-1])[:, None]
            start, end = end, end + 1
        return torch.stack(chosen, dim=1), torch.stack(logits, dim=1)


class VisionBackbone(nn.Module):
    def __init__(self, config: OpenVlaConfig):
        super().__init__()
        self.featurizer = Tower(config.towers[0], config.image_size)
        self.fused_featurizer = Tower(config.towers[1], config.image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 6, S, S] -> [B, P, sum of the towers' widths]."""
        return torch.cat([self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])], dim=2)


class Projector(nn.Module):
    def __init__(self, vision_width: int, language_width: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, language_width)
        self.fc3 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.gelu(self.fc2(functional.gelu(self.fc1(features))))
        return self.fc3(hidden)


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """[B, S, S, 3] uint8 -> [B, 6, S, S] float32: the first tower's channels, then the second's."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return torch.cat(
        [
            (pixels - _channels(mean, pixels)) / _channels(std, pixels)
            for mean, std in zip(normalisation.means, normalisation.stds, strict=True)
        ],
        dim=1,
    )


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
