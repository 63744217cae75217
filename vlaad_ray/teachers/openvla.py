"""OpenVLA as a policy over many environments at once: `infer_batch(observations)` -> one action for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlaad_ray.models.openvla.actions import ActionStatistics, choose_key, parse_statistics, tokens_to_actions
from vlaad_ray.models.openvla.checkpoint import load_model, read_checkpoint
from vlaad_ray.models.openvla.model import OpenVlaModel
from vlaad_ray.models.openvla.preprocess import CAMERA, EMPTY_TOKEN, Normalisation, prepare, prompt
from vlaad_ray.types import ACTION_DIM, ActionChunk, Observation

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class OpenVla:
    """Deterministic (greedy) and without memory between steps: any observations may share a batch."""

    needs_images = True

    def __init__(
        self,
        model: OpenVlaModel,
        tokenizer: Tokenizer,
        normalisation: Normalisation,
        statistics: ActionStatistics,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._normalisation, self._statistics = normalisation, statistics
        weight = model.projector.fc1.weight
        self._device, self._dtype = weight.device, weight.dtype

    @property
    def image_size(self) -> int:
        """What `prepare` must resize to, in pixels."""
        return self._model.config.image_size

    def reset(self, instruction: str) -> None:
        """Nothing to do: every observation brings its instruction."""

    def infer(self, observation: Observation) -> ActionChunk:
        return self.infer_batch([prepare(observation, self.image_size)])[0]

    @torch.inference_mode()
    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One action, a chunk of length 1, for each observation (as `prepare` left it). Instructions may differ."""
        if not observations:
            return []
        images = torch.from_numpy(np.stack([observation.images[CAMERA] for observation in observations]))
        pixels = normalise(images.to(self._device), self._normalisation).to(self._dtype)
        prompts = [self._encode(observation.instruction) for observation in observations]
        tokens, _ = self._model.decode(pixels, prompts, ACTION_DIM)
        config = self._model.config
        actions = tokens_to_actions(
            tokens.cpu().numpy(), config.action_vocabulary_end, config.action_bins, self._statistics
        )
        return [ActionChunk(action[None]) for action in actions]

    def _encode(self, instruction: str) -> list[int]:
        """The begin token, the prompt's tokens and the empty token."""
        words = self._tokenizer.encode(prompt(instruction), add_special_tokens=False).ids
        ids = [self._model.config.language.bos_token_id, *words]
        return ids if ids[-1] == EMPTY_TOKEN else [*ids, EMPTY_TOKEN]


def load_openvla(
    checkpoint: Path,
    suite: str,
    unnorm_key: str | None = None,
    device: str = "cuda",
    dtype: Literal["bf16", "fp32"] = "bf16",
) -> OpenVla:
    """Load a checkpoint directory for one LIBERO suite.

    unnorm_key: the data set whose statistics un-normalise the actions; None: the suite's own, `libero_x` or
    `libero_x_no_noops`. Raises UserError for whatever in the directory is missing or doesn't fit.
    """
    described = read_checkpoint(checkpoint)
    key = choose_key(described.statistics, suite, unnorm_key, str(described.statistics_source))
    statistics = parse_statistics(described.statistics[key], f"{described.statistics_source}, {key!r}")
    model = load_model(described, torch.device(device), DTYPES[dtype])
    return OpenVla(model, described.tokenizer, described.normalisation, statistics)


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
