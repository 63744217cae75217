"""Overlapping answers of a student averaged, step by step."""

from __future__ import annotations

import numpy as np

from vlaad_ray.configs import UserError
from vlaad_ray.types import LIBERO, ActionChunk, Observation


class TemporalEnsemble:
    """Averages what overlapping chunks say about the same control step (ACT, Zhao et al., arXiv 2304.13705, §IV-B).

    A step's predictions, oldest first, weigh exp(-decay * i), i = 0, 1, …; the gripper goes where most weight is. Takes
    whole chunks and hands out `execute` actions of each: every action counts as executed.
    """

    def __init__(self, execute: int, decay: float, gripper: int | None = LIBERO.gripper) -> None:
        """`decay`: >= 0; ACT's is 0.01, 0 weighs all alike, the larger the more the oldest counts."""
        if decay < 0:
            raise UserError(f"ensemble decay {decay}: must be at least 0 (ACT: 0.01)")
        self._execute, self._decay, self._gripper = execute, decay, gripper
        self.reset()

    def reset(self) -> None:
        """Forget: an episode begins."""
        self._chunks: list[np.ndarray] = []
        """Chunks that are not over yet, oldest first, as [K, A + 1]: actions and the chance that the gripper closes;
        each begins at the present step. [K, A] where there is no gripper."""

    def apply(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        if self._gripper is None:
            self._chunks.append(chunk.actions)
        else:
            closing = chunk.closing if chunk.closing is not None else (chunk.actions[:, self._gripper] > 0)
            self._chunks.append(np.column_stack([chunk.actions, closing]))
        blended = np.stack([self._blend(step) for step in range(self._execute)])
        self._chunks = [rest for chunk in self._chunks if len(rest := chunk[self._execute :])]
        spread = None if chunk.spread is None else chunk.spread[: self._execute]
        if self._gripper is None:
            return ActionChunk(blended, chunk.phase, spread=spread)
        return ActionChunk(blended[:, :-1], chunk.phase, blended[:, -1], spread)

    def _blend(self, step: int) -> np.ndarray:
        said = np.stack([chunk[step] for chunk in self._chunks if step < len(chunk)])
        weights = np.exp(-self._decay * np.arange(len(said)))
        action = (weights / weights.sum()) @ said
        if self._gripper is not None:  # a tie (two chunks, no decay) goes to what was seen last
            side = action[self._gripper]
            action[self._gripper] = np.sign(side) if abs(side) > 1e-6 else said[-1, self._gripper]
        return action.astype(np.float32)
