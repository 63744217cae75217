"""OpenVLA's decoder layer by layer: gated for training, skipped at run time, its cache right on every route.

Notation as in model.py; K chunk length (1), N action bins, L words of an instruction, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlaad_ray.models.openvla.actions import ActionStatistics, actions_to_tokens
from vlaad_ray.models.openvla.model import OpenVlaConfig, OpenVlaModel, normalise
from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.models.openvla.vision import PATCH
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.decoder import RouteCache, along, rows_of, visible
from vlaad_ray.models.vla.layered import Inputs, Layered

NO_WORD = -1
"""Pads token ids of instructions, on the right."""
PROMPT_TOKENS = 32
"""Of a prompt with an instruction of libero_object, begin and empty token included: to a few."""


class LayeredOpenVla(Layered):
    """Around a model, whose weights it leaves where they are."""

    def __init__(self, model: OpenVlaModel, normalisation: Normalisation, statistics: ActionStatistics) -> None:
        """statistics: of the data set whose actions are its teacher's, for `embed`."""
        self.model, self.normalisation, self.statistics = model, normalisation, statistics
        self.llama = model.language_model.model
        self.depth, self.width = model.config.language.num_hidden_layers, model.config.language.hidden_size

    def embed(self, images: Tensor, proprio: Tensor, instruction: Tensor, actions: Tensor | None = None) -> Inputs:
        """images [B, 1, S, S, 3] uint8 as `preprocess.prepare` leaves them; instruction: a prompt's token ids, begin
        and empty token included, NO_WORD at its end. Of `actions` [B, 1, A] all tokens but the last are appended.
        """
        if actions is None:
            raise ValueError("OpenVLA says its actions one by one: give those that it is to have said")
        prompts = [[token for token in row if token != NO_WORD] for row in instruction.tolist()]
        weight = self.model.projector.fc1.weight
        pixels = normalise(images[:, 0].to(weight.device), self.normalisation).to(weight.dtype)
        said = torch.from_numpy(self.tokens(actions)[:, :-1]).to(weight.device)
        return self.begin(pixels, prompts, said)

    def tokens(self, actions: Tensor) -> np.ndarray:
        """[B, 1, A] actions -> [B, A] int64 tokens."""
        config = self.model.config
        return actions_to_tokens(
            actions[:, 0].cpu().numpy(), config.action_vocabulary_end, config.action_bins, self.statistics
        )

    def begin(self, pixels: Tensor, prompts: Sequence[Sequence[int]], said: Tensor | None = None) -> Inputs:
        """As OpenVlaModel.decode begins, padding on the left; then the action tokens `said` [B, A'] int64."""
        words = self.model.language_model.get_input_embeddings()
        rows, pictured, worded = [], [], []
        for prompt, patches in zip(prompts, self.model.embed(pixels), strict=True):
            text = words(torch.tensor(prompt, device=patches.device))
            rows.append(torch.cat([text[:1], patches, text[1:]]))
            picture = torch.ones(len(rows[-1]), dtype=torch.bool, device=patches.device)
            picture[:1], picture[len(patches) + 1 :] = False, False
            pictured.append(picture)
            worded.append(~picture)
        hidden, vision, text = (
            pad_sequence(each, batch_first=True, padding_side="left") for each in (rows, pictured, worded)
        )
        present = vision | text
        if said is not None:
            actions = torch.zeros_like(said, dtype=torch.bool)
            hidden = torch.cat([hidden, words(said)], dim=1)
            vision, text = torch.cat([vision, actions], dim=1), torch.cat([text, actions], dim=1)
            present = torch.cat([present, ~actions], dim=1)
        return self._inputs(hidden, present, 0, vision, text)

    def _inputs(
        self, hidden: Tensor, present: Tensor, start: int, vision: Tensor | None = None, text: Tensor | None = None
    ) -> Inputs:
        """hidden [B, T, D]: the tokens from `start` on of a sequence whose tokens are `present` [B, start + T]."""
        positions = (present.cumsum(1) - 1).clamp(min=0)[:, start:]
        cos, sin = self.llama.rotary_emb(hidden, positions)
        neither = torch.zeros_like(positions, dtype=torch.bool)
        # Attention is quicker without a mask.
        mask: tuple[Tensor, ...] = () if bool(present.all()) else (visible(present, start),)
        return Inputs(
            hidden,
            present[:, start:],
            positions,
            neither if vision is None else vision,
            neither if text is None else text,
            (cos, sin, *mask),
        )

    def layer(self, index: int, hidden: Tensor, inputs: Inputs) -> Tensor:
        return self._cached(None, index, hidden, inputs)

    def _cached(self, cache: RouteCache | None, index: int, hidden: Tensor, inputs: Inputs) -> Tensor:
        cos, sin, *mask = inputs.shared
        # By place: transformers 5.24 renamed past_key_values to cache. Without a mask it is causal.
        after: Tensor = self.llama.layers[index](
            hidden, mask[0] if mask else None, None, cache, False, position_embeddings=(cos, sin)
        )
        return after

    def readout(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """The last A tokens' words about the next: -> [B, 1, A, N], bin i being token action_vocabulary_end - 1 - i."""
        config = self.model.config
        logits = self._words(hidden[:, -len(self.statistics.q01) :])
        end = config.action_vocabulary_end
        return logits[:, None, :, end - config.action_bins : end].flip(-1)

    def _words(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.language_model.lm_head(self.llama.norm(hidden))
        return logits

    @torch.inference_mode()
    def decode(
        self,
        pixels: Tensor,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        choose: Callable[[Inputs], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """As OpenVlaModel.decode, each row on its own route. choose: its inputs -> routes [B, L] bool, once an answer.

        A layer keeps the keys and values of the rows that run it, so the cache misses nothing on any route.
        """
        inputs = self.begin(pixels, prompts)
        rows, present = rows_of(choose(inputs)), inputs.present
        layer = partial(self._cached, RouteCache())
        words = self.model.language_model.get_input_embeddings()
        chosen: list[Tensor] = []
        logits: list[Tensor] = []
        for _ in range(tokens):
            logits.append(self._words(along(layer, inputs, rows)[:, -1]))
            chosen.append(logits[-1].argmax(-1))
            start, present = present.shape[1], torch.cat([present, torch.ones_like(present[:, :1])], dim=1)
            inputs = self._inputs(words(chosen[-1])[:, None], present, start)
        return torch.stack(chosen, dim=1), torch.stack(logits, dim=1)


def cost(config: OpenVlaConfig, prompt: int = PROMPT_TOKENS, tokens: int = 7) -> routes.Cost:
    """FLOPs of one answer: both towers but their last blocks, which OpenVLA does not use, and the projector; a prompt
    of so many `prompt` tokens and the patches at once; then token by token, from a cache.

    Of OpenVLA-7B with 14, 16, 8 and 2 of 32 layers that leaves 49.1, 54.8, 32.2 and 15.2 % of the whole.
    """
    patches = (config.image_size // PATCH) ** 2
    width = config.language.hidden_size
    fixed = 0.0
    for tower in config.towers:
        seen = patches + tower.registers + tower.class_token
        fixed += (tower.depth - 1) * routes.vit_block_flops(seen, tower.width, tower.mlp_width)
        fixed += 2 * patches * 3 * PATCH**2 * tower.width
    vision = sum(tower.width for tower in config.towers)
    fixed += 2 * patches * (4 * vision**2 + 4 * vision * width + width**2)
    fixed += 2 * tokens * width * config.language.vocab_size
    language = config.language
    sizes = routes.LlamaSizes(
        depth=language.num_hidden_layers,
        width=width,
        mlp_width=language.intermediate_size,
        heads=language.num_attention_heads,
        key_value_heads=language.num_key_value_heads,
        head_width=width // language.num_attention_heads,
    )
    first = patches + prompt
    pairs = first**2 + sum(first + said for said in range(1, tokens))
    return routes.Cost(fixed, sizes.layer_flops(first + tokens - 1, pairs), sizes.depth)
