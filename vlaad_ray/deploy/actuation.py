"""What a robot is told, from what a student says: all that is remembered of one robot between its questions.

A student has no memory. Where it is not sure and comes to rest, it sees the same picture again and is not sure for
ever; so what it is not sure of adds up here, for the gripper, or is tried, for the arm (docs/experiments.md has what
either does).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vlaad_ray.configs import ActuationConfig, UserError, check_bounds
from vlaad_ray.types import GRIPPER, ActionChunk, Observation

UNCHANGED = 1 / 8
"""A gripper command changes when the chance is less that the teacher would have left it as it is all the while."""
REST_M = 0.01
"""A hand that stays within this distance of where it was is at rest."""
FINGERS_REST_M = 0.002
"""Each finger, likewise: a gripper that opens or closes is not at rest."""

ABOUT_TO_CLOSE = 0.1
"""An open gripper whose closing is likelier is at rest for that, not for want of a way to go."""
NUDGED_STEPS = 6
"""Control steps that a nudge lasts."""


class Actuation:
    """A gripper's command and an arm's nudges. `apply` answers in order; an episode begins with `reset`."""

    def __init__(self, config: ActuationConfig, gripper: int = GRIPPER) -> None:
        """`gripper`: its place in an action."""
        check_bounds(config)
        if config.nudge_after and gripper != GRIPPER:
            raise UserError("--nudge-after reads the proprioception of LIBERO's arm; leave it at 0 for this robot")
        self._place, self._nudges = gripper, config.nudge_after > 0
        self._gripper = GripperCommand(config.gripper_dwell, config.gripper_memory, gripper)
        self._nudge = Nudge(config.nudge_after)

    def reset(self) -> None:
        """Forget: an episode begins."""
        self._gripper.reset()
        self._nudge.reset()

    def apply(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        """What to do, from what was seen and the answer to it. All K actions count as executed."""
        actions = self._gripper.apply(chunk)
        if not self._nudges:
            return replace(chunk, actions=actions)
        sure_to_stay_open = chunk.closing is None or float(chunk.closing.max()) < ABOUT_TO_CLOSE
        if (actions[:, self._place] < 0).all() and sure_to_stay_open:
            actions[:, :3] = self._nudge.apply(observation.proprio, chunk)
        else:  # at rest before it grasps, or before it lets go: the doubts above see to that
            self._nudge.pause()
        return replace(chunk, actions=actions)


class GripperCommand:
    """What the gripper is told, from what a student without memory says of it; the same as it says with 0 and 0.

    A student that is not sure when to close comes to rest at the object, sees the same picture, and is not sure for
    ever. What it says is the chance that the teacher would change the command at this step. The command changes when
    that is likelier than not, or when the teacher would hardly have left it as it is for so long (UNCHANGED).

    And where it says "open now, close next" it opens, begins to close, sees open fingers, and says the same again: so a
    command stands for a while once it has changed (docs/experiments.md has what either does).
    """

    def __init__(self, dwell: int, memory: int, gripper: int = GRIPPER) -> None:
        """`dwell`: control steps that a new command stands at least. `memory`: steps over which doubts add up.
        `gripper`: its place in an action.
        """
        self._dwell, self._memory, self._place = dwell, memory, gripper
        self.reset()

    def reset(self) -> None:
        """Forget: an episode begins."""
        self._command, self._stood, self._doubt = 0.0, 0, 0.0

    def apply(self, chunk: ActionChunk) -> np.ndarray:
        """[K, A], the chunk's actions with the gripper's commands. All K count as executed."""
        actions = chunk.actions.copy()
        if not self._dwell and not self._memory:
            return actions
        closing = chunk.closing if chunk.closing is not None else (actions[:, self._place] > 0).astype(np.float32)
        for action, chance in zip(actions, closing, strict=True):
            if self._command == 0:
                self._change(float(action[self._place]))
            elif self._stood >= self._dwell and self._would_have_changed(float(chance)):
                self._change(-self._command)
            action[self._place] = self._command
            self._stood += 1
        return actions

    def _change(self, command: float) -> None:
        self._command, self._stood, self._doubt = command, 0, 0.0

    def _would_have_changed(self, closing: float) -> bool:
        """The doubt is -log of the chance that the teacher would have left the command as it is all the while."""
        change = closing if self._command < 0 else 1 - closing
        if self._memory:
            self._doubt = self._doubt * (1 - 1 / self._memory) - math.log(max(1 - change, 1e-6))
        return change > 0.5 or self._doubt > -math.log(UNCHANGED)


class Nudge:
    """Gets an arm moving that came to rest where the student is not sure where to go.

    A student's action is the mean of its distribution. Where that is wide, or has humps on either side, the mean is
    next to nothing, the arm stays, and so does the picture. When the open hand has not moved for `after` control
    steps, the translations get noise for a while, as wide as the student's own distribution: where it is sure, that is
    hardly any.
    """

    def __init__(self, after: int) -> None:
        """`after`: control steps; 0: never."""
        self._after = after
        self.reset()

    def reset(self) -> None:
        """Forget: an episode begins. The same episode gets the same nudges."""
        self._random = np.random.default_rng(0)
        self.pause()

    def pause(self) -> None:
        """What follows is not to be held against what was before."""
        self._from: np.ndarray | None = None
        self._rested = self._left = 0

    def apply(self, proprio: np.ndarray, chunk: ActionChunk) -> np.ndarray:
        """[K, 3] translations. All K actions count as executed."""
        translations: np.ndarray = chunk.actions[:, :3]
        if not self._after or chunk.spread is None:
            return translations
        if self._left == 0 and self._is_at_rest(proprio, len(chunk.actions)):
            self._left, self._from = NUDGED_STEPS, None
        if self._left == 0:
            return translations
        steps = min(self._left, len(translations))
        self._left -= steps
        nudged = translations.copy()
        nudged[:steps] += self._random.normal(size=3) * chunk.spread[:steps]
        return np.clip(nudged, -1, 1)

    def _is_at_rest(self, proprio: np.ndarray, steps: int) -> bool:
        """Whether it was for long enough by now; it is going to act for `steps` more."""
        if self._from is None or moved(self._from, proprio):
            self._from, self._rested = proprio.copy(), 0
        rested, self._rested = self._rested, self._rested + steps
        return rested >= self._after


def moved(before: np.ndarray, now: np.ndarray) -> bool:
    """By two proprioceptions, [8] each: hand or fingers. Turning in place does not count."""
    hand, fingers = np.linalg.norm(now[:3] - before[:3]), np.abs(now[6:8] - before[6:8]).max()
    return not (hand <= REST_M and fingers <= FINGERS_REST_M)  # what is not a number is no rest
