"""A trained student as a Policy: `reset(instruction)`, then `infer(observation)` -> the next actions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vlaad_ray.configs import UserError
from vlaad_ray.students.checkpoint import Pretrained, from_pretrained
from vlaad_ray.students.preprocess import bins_to_actions, stack_cameras
from vlaad_ray.types import PROPRIO_DIM, ActionChunk, Observation, Policy

MAX_TEXTS = 64
"""Instructions whose encodings are kept: a server's clients are at different tasks."""


class StudentPolicy:
    """Deterministic: the same observations give the same actions. A text is encoded once, and kept while it is used."""

    needs_images = True

    def __init__(
        self,
        pretrained: Pretrained,
        execute: int | None = None,
        device: str = "cpu",
        dtype: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """`execute`: how many of the K actions to hand out before looking again (None: all)."""
        chunk = pretrained.student.config.chunk
        if execute is not None and not 1 <= execute <= chunk:
            raise UserError(f"execute={execute}: this student answers with {chunk} actions; choose 1 to {chunk}")
        self.training: Mapping[str, Any] = pretrained.training
        """The checkpoint's record of its training: objective, data, render mode, init states."""
        self._student = pretrained.student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._tokenizer = pretrained.tokenizer
        self.cameras: Sequence[str] = pretrained.student.config.cameras
        """Those that the student looks through."""
        self.execute = execute or chunk
        """How many actions an answer holds."""
        self._device = device
        self._autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bf16")
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()
        """Instruction -> its encoding [1, D], the latest used last."""

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        execute: int | None = None,
        device: str = "cpu",
        dtype: Literal["fp32", "bf16"] = "fp32",
    ) -> StudentPolicy:
        """Load OUT/checkpoint of a training run. Raises UserError for a missing, corrupt or foreign checkpoint."""
        return cls(from_pretrained(Path(directory)), execute, device, dtype)

    def reset(self, instruction: str) -> None:
        """Encode the instruction, so that the first `infer` is as quick as the others."""
        self._text(instruction)

    def infer(self, observation: Observation) -> ActionChunk:
        """Raises ValueError for a missing camera, a wrong shape or dtype, or proprioception that is not finite."""
        return self.infer_batch([observation])[0]

    @torch.inference_mode()
    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """The same for many at once. What else is in a batch changes an answer by rounding alone."""
        cameras = self._student.config.cameras
        images = np.stack([stack_cameras(self._checked_images(each), cameras, self._size) for each in observations])
        proprio = np.stack([self._checked_proprio(each) for each in observations])
        text = torch.cat([self._text(each.instruction) for each in observations])
        with self._autocast:
            features = self._student.perceive(
                torch.from_numpy(images).to(self._device), torch.from_numpy(proprio).to(self._device), text
            )
            logits = self._student.decide(features)
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the student's logits are not finite: its weights are broken, train it again")
        actions = bins_to_actions(logits)[:, : self.execute].cpu().numpy()
        return [ActionChunk(chunk) for chunk in actions]

    @torch.inference_mode()
    def _text(self, instruction: str) -> torch.Tensor:
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what to do, as in the training data")
        if instruction not in self._texts:
            tokens = torch.from_numpy(self._tokenizer([instruction])).to(self._device)
            with self._autocast:
                self._texts[instruction] = self._student.encode_text(tokens)
            if len(self._texts) > MAX_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(instruction)
        return self._texts[instruction]

    @property
    def _size(self) -> int:
        return self._student.config.image_size

    def _checked_images(self, observation: Observation) -> Mapping[str, np.ndarray]:
        for camera in self._student.config.cameras:
            image = observation.images.get(camera)
            if image is None:
                got = ", ".join(observation.images) or "none"
                raise ValueError(f"camera {camera!r} is missing: the student looks through it (got: {got})")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
                raise ValueError(f"camera {camera!r}: expected [H, W, 3] uint8, got {list(image.shape)} {image.dtype}")
        return observation.images

    def _checked_proprio(self, observation: Observation) -> np.ndarray:
        proprio = np.array(observation.proprio, np.float32)
        if not self._student.config.proprio:
            return np.zeros(PROPRIO_DIM, np.float32)
        if proprio.shape != (PROPRIO_DIM,) or not np.isfinite(proprio).all():
            raise ValueError(f"proprio: expected [{PROPRIO_DIM}] finite numbers, got {list(proprio.shape)} {proprio}")
        return proprio


class GripperDwell:
    """Lets a gripper command stand for at least `dwell` control steps once it has changed; else as the policy says.

    A student has no memory. Where it says "open now, close next" it opens, begins to close, sees open fingers, and says
    the same again, for ever: 9 of 11 failures on ten tasks of libero_object (docs/experiments.md).
    """

    def __init__(self, dwell: int) -> None:
        self._dwell = dwell
        self.reset()

    def reset(self) -> None:
        """Forget: an episode begins."""
        self._command, self._stood = 0.0, 0

    def hold(self, actions: np.ndarray) -> np.ndarray:
        """[K, 7] -> [K, 7], the gripper's commands held. All K count as executed."""
        actions = actions.copy()
        for action in actions:
            if self._command == 0 or (action[6] != self._command and self._stood >= self._dwell):
                self._command, self._stood = float(action[6]), 0
            action[6] = self._command
            self._stood += 1
        return actions


class SteadyGripper:
    """A policy with a GripperDwell."""

    def __init__(self, policy: Policy, dwell: int) -> None:
        self._policy, self._gripper = policy, GripperDwell(dwell)
        self.needs_images = policy.needs_images

    def reset(self, instruction: str) -> None:
        self._policy.reset(instruction)
        self._gripper.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        """All actions handed out count as executed."""
        chunk = self._policy.infer(observation)
        return ActionChunk(self._gripper.hold(chunk.actions), chunk.phase)
