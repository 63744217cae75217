"""A trained student as a Policy: `reset(instruction)`, then `infer(observation)` -> the next actions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlaad_ray.configs import Location, UserError, location
from vlaad_ray.deploy.backends.pytorch import Dtype, Mode
from vlaad_ray.deploy.loading import Runnable, load
from vlaad_ray.models.student.preprocess import resize_image, stack_cameras
from vlaad_ray.types import ActionChunk, Observation

MAX_TEXTS = 64
"""Instructions whose encodings are kept: a server's clients are at different tasks."""


class StudentPolicy:
    """Deterministic, and without memory but for encoded instructions: the same observation gives the same actions.

    Whatever the network says, actions are finite and in [-1, 1]: what is not finite is no answer.
    """

    needs_images = True

    def __init__(self, student: Runnable, execute: int | None = None) -> None:
        """`execute`: how many of the K actions to hand out before looking again (None: all)."""
        chunk = student.interface.chunk
        check_execute(execute, chunk)
        self.training: Mapping[str, Any] = student.training
        """The checkpoint's record of its training: objective, data, render mode, init states."""
        self.backend = student.backend
        self.cameras: Sequence[str] = student.interface.cameras
        """Those that the student looks through."""
        self.execute = execute or chunk
        """How many actions an answer holds."""
        self.gripper = student.interface.gripper
        """Its place in an action; None: there is none."""
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
        backend: str | None = None,
        mode: Mode | None = None,
    ) -> StudentPolicy:
        """Load OUT/checkpoint of a training run, or what jobs/export.py wrote.

        `device`, `dtype` (None: fp32) and `mode` (None: graphs on CUDA, eager elsewhere) choose how torch runs a
        checkpoint. `backend` (None: what the directory is
        made for) refuses any other. Raises UserError for a missing, corrupt or foreign directory.
        """
        place = location(directory) if isinstance(directory, str) else directory
        return cls(load(place, device, dtype, backend, mode), execute)

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
        output = self.backend.output(*self.prepare(observations))
        return [chunk.first(self.execute) for chunk in self.backend.decode(output)]

    def prepare(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the network gets to see: images [B, C, S, S, 3] uint8, proprio [B, P] float32, encoded text [B, D]."""
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
        size = self._interface.proprio_dim
        if not self._interface.proprio:
            return np.zeros(size, np.float32)
        proprio = np.array(observation.proprio, np.float32)
        if proprio.shape != (size,) or not np.isfinite(proprio).all():
            raise ValueError(f"proprio: expected [{size}] finite numbers, got {list(proprio.shape)} {proprio}")
        return proprio


def check_execute(execute: int | None, chunk: int) -> None:
    """Raises UserError for more actions than an answer holds, or none."""
    if execute is not None and not 1 <= execute <= chunk:
        raise UserError(f"execute={execute}: this student answers with {chunk} actions; choose 1 to {chunk}")


def fit_images(observation: Observation, cameras: Sequence[str], size: int) -> Observation:
    """Only what a student looks at, in its own size: all that must travel to one elsewhere, which answers the same."""
    seen = {name: resize_image(image, size) for name, image in observation.images.items() if name in cameras}
    return Observation(observation.instruction, observation.proprio, seen)
