"""A trained student as a Policy: `reset(instruction)`, then `infer(observation)` -> the next actions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vlaad_ray.configs import Location, UserError, location
from vlaad_ray.deploy.backends.pytorch import Dtype
from vlaad_ray.deploy.loading import BackendName, Runnable, load
from vlaad_ray.models.student.preprocess import (
    GRIPPER,
    bins_to_actions,
    closing_logit,
    stack_cameras,
    translation_spread,
)
from vlaad_ray.types import PROPRIO_DIM, ActionChunk, Observation, Policy

MAX_TEXTS = 64
"""Instructions whose encodings are kept: a server's clients are at different tasks."""


class StudentPolicy:
    """Deterministic, and without memory but for encoded instructions: the same observation gives the same actions.

    Whatever the logits, actions are finite and in [-1, 1]: means over bins that lie there; no finite logits, no action.
    """

    needs_images = True

    def __init__(self, student: Runnable, execute: int | None = None) -> None:
        """`execute`: how many of the K actions to hand out before looking again (None: all)."""
        chunk = student.interface.chunk
        if execute is not None and not 1 <= execute <= chunk:
            raise UserError(f"execute={execute}: this student answers with {chunk} actions; choose 1 to {chunk}")
        self.training: Mapping[str, Any] = student.training
        """The checkpoint's record of its training: objective, data, render mode, init states."""
        self.backend = student.backend
        self.cameras: Sequence[str] = student.interface.cameras
        """Those that the student looks through."""
        self.execute = execute or chunk
        """How many actions an answer holds."""
        self._interface, self._tokenizer = student.interface, student.tokenizer
        self._texts: OrderedDict[str, np.ndarray] = OrderedDict()
        """Instruction -> its encoding [1, D], the latest used last."""

    @classmethod
    def from_pretrained(
        cls,
        directory: Location | str,
        execute: int | None = None,
        device: str = "cpu",
        dtype: Dtype | None = None,
        backend: BackendName | None = None,
    ) -> StudentPolicy:
        """Load OUT/checkpoint of a training run, or what jobs/export.py wrote.

        `device` and `dtype` (None: fp32) choose how torch runs a checkpoint. `backend` (None: what the directory is
        made for) refuses any other. Raises UserError for a missing, corrupt or foreign directory.
        """
        return cls(
            load(location(directory) if isinstance(directory, str) else directory, device, dtype, backend), execute
        )

    def reset(self, instruction: str) -> None:
        """Encode the instruction now, so that the first `infer` is as quick as the others."""
        self._encode(instruction)

    def infer(self, observation: Observation) -> ActionChunk:
        """Raises ValueError for a missing camera, a wrong shape or dtype, or proprioception that is not finite."""
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One answer for each observation, in order; they need not belong together. Raises as `infer` does."""
        if not observations:
            return []
        logits = self.backend.logits(*self.prepare(observations))
        if not np.isfinite(logits).all():
            raise FloatingPointError("the student's logits are not finite: its weights are broken, train it again")
        # First all, then the slice: a product of another shape rounds otherwise, and episodes would not repeat exactly.
        actions = bins_to_actions(torch.from_numpy(logits))[:, : self.execute].numpy()
        closing = closing_logit(torch.from_numpy(logits))[:, : self.execute].sigmoid().numpy()
        spread = translation_spread(torch.from_numpy(logits))[:, : self.execute].numpy()
        return [
            ActionChunk(each, closing=odds, spread=width)
            for each, odds, width in zip(actions, closing, spread, strict=True)
        ]

    def prepare(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the network gets to see: images [B, C, S, S, 3] uint8, proprio [B, 8] float32, encoded text [B, D]."""
        pictures = [
            stack_cameras(self._checked_images(each), self.cameras, self._interface.image_size) for each in observations
        ]
        proprio = [self._checked_proprio(each) for each in observations]
        texts = [self._encode(each.instruction) for each in observations]
        return np.stack(pictures), np.stack(proprio), np.concatenate(texts)

    def _encode(self, instruction: str) -> np.ndarray:
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what to do, as in the training data")
        if instruction not in self._texts:
            self._texts[instruction] = self.backend.encode_text(self._tokenizer([instruction]))
            if len(self._texts) > MAX_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(instruction)
        return self._texts[instruction]

    def _checked_images(self, observation: Observation) -> Mapping[str, np.ndarray]:
        for camera in self.cameras:
            image = observation.images.get(camera)
            if image is None:
                got = ", ".join(observation.images) or "none"
                raise ValueError(f"camera {camera!r} is missing: the student looks through it (got: {got})")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
                raise ValueError(f"camera {camera!r}: expected [H, W, 3] uint8, got {list(image.shape)} {image.dtype}")
        return observation.images

    def _checked_proprio(self, observation: Observation) -> np.ndarray:
        if not self._interface.proprio:
            return np.zeros(PROPRIO_DIM, np.float32)
        proprio = np.array(observation.proprio, np.float32)
        if proprio.shape != (PROPRIO_DIM,) or not np.isfinite(proprio).all():
            raise ValueError(f"proprio: expected [{PROPRIO_DIM}] finite numbers, got {list(proprio.shape)} {proprio}")
        return proprio


class TemporalEnsemble:
    """Averages what overlapping chunks say about the same control step (ACT, Zhao et al., arXiv 2304.13705, §IV-B).

    A step's predictions, oldest first, weigh exp(-decay * i), i = 0, 1, …; the gripper goes where most weight is. Asks
    the policy for whole chunks and hands out `execute` actions of each: every action counts as executed.
    """

    def __init__(self, policy: Policy, execute: int, decay: float) -> None:
        """`decay`: >= 0; ACT's is 0.01, 0 weighs all alike, the larger the more the oldest counts."""
        if decay < 0:
            raise UserError(f"ensemble decay {decay}: must be at least 0 (ACT: 0.01)")
        self._policy, self._execute, self._decay = policy, execute, decay
        self.needs_images = policy.needs_images
        self._chunks: list[np.ndarray] = []
        """Chunks that are not over yet, oldest first, as [K, 8]: actions and the chance that the gripper closes; each
        begins at the present step."""

    def reset(self, instruction: str) -> None:
        self._policy.reset(instruction)
        self._chunks = []

    def infer(self, observation: Observation) -> ActionChunk:
        answer = self._policy.infer(observation)
        closing = answer.closing if answer.closing is not None else (answer.actions[:, GRIPPER] > 0)
        self._chunks.append(np.column_stack([answer.actions, closing]))
        blended = np.stack([self._blend(step) for step in range(self._execute)])
        self._chunks = [rest for chunk in self._chunks if len(rest := chunk[self._execute :])]
        spread = None if answer.spread is None else answer.spread[: self._execute]
        return ActionChunk(blended[:, :-1], answer.phase, blended[:, -1], spread)

    def _blend(self, step: int) -> np.ndarray:
        said = np.stack([chunk[step] for chunk in self._chunks if step < len(chunk)])
        weights = np.exp(-self._decay * np.arange(len(said)))
        action = (weights / weights.sum()) @ said
        # A tie (two chunks, no decay) goes to what was seen last.
        action[GRIPPER] = np.sign(action[GRIPPER]) if abs(action[GRIPPER]) > 1e-6 else said[-1, GRIPPER]
        return action.astype(np.float32)
