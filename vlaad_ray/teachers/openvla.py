"""OpenVLA as a policy over many environments at once: `infer_batch(observations)` -> one action for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlaad_ray.models.openvla.actions import ActionStatistics, choose_key, parse_statistics, tokens_to_actions
from vlaad_ray.models.openvla.checkpoint import load_model, read_checkpoint
from vlaad_ray.models.openvla.layered import LayeredOpenVla
from vlaad_ray.models.openvla.model import OpenVlaModel, normalise
from vlaad_ray.models.openvla.preprocess import CAMERA, EMPTY_TOKEN, Normalisation, prepare, prompt
from vlaad_ray.models.openvla.routing import Routing
from vlaad_ray.models.vla.layered import Inputs
from vlaad_ray.models.vla.router import Router, routes_of
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
        choose: Callable[[Inputs], Tensor] | None = None,
    ):
        """choose: an observation's inputs -> its route [B, L] bool; None: all decoder layers run."""
        self._layered = LayeredOpenVla(model, normalisation, statistics)
        self._choose = choose
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
        if self._choose is None:
            tokens, _ = self._model.decode(pixels, prompts, ACTION_DIM)
        else:
            tokens, _ = self._layered.decode(pixels, prompts, ACTION_DIM, self._choose)
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
    choose = None if described.routing is None else chooser(described.routing, model, torch.device(device))
    return OpenVla(model, described.tokenizer, described.normalisation, statistics, choose)


def chooser(routing: Routing, model: OpenVlaModel, device: torch.device) -> Callable[[Inputs], Tensor]:
    """What decides on routes [B, L]: the router, or nobody where the route is fixed."""
    language = model.config.language
    router = routing.load(language.hidden_size, language.num_hidden_layers, device)
    if router is None:
        return functools.partial(_always, torch.tensor(routing.route))
    return functools.partial(_as_said, router, routing.threshold)


def _always(route: Tensor, inputs: Inputs) -> Tensor:
    return route.expand(len(inputs.hidden), -1)


def _as_said(router: Router, threshold: float, inputs: Inputs) -> Tensor:
    return routes_of(router(inputs), threshold)
