"""Noise that an episode may be run with: on what is executed (DART), and on what the teacher asks for.

Random numbers come from the episode's name alone, so an episode is the same on any actor.
"""

from __future__ import annotations

import hashlib
from collections import deque

import numpy as np

from vlaad_ray.configs import NoiseConfig, TeacherNoiseConfig, UserError
from vlaad_ray.semantics.phases import MIN_COMMAND_FRAMES
from vlaad_ray.types import LIBERO, Embodiment, EpisodeKey

ROTATION_SHARE, BURST_ROTATION_SHARE = 0.5, 0.3
"""Noise on an arm's rotations, as a share of that on translations: white, and in bursts."""
FLIP_LEAD = 2
"""Steps by which flips fall due early. A burst waits 1.4 on average for its place, and one that the end cuts off
was not taken back: without, 9.8 % at a set 10 %, in episodes of 125 steps."""


class ActionNoise:
    """Noise on executed actions (DART, Laskey et al. 2017): the recorded target stays what the teacher asked for."""

    def __init__(self, config: NoiseConfig, key: EpisodeKey, body: Embodiment = LIBERO):
        self._random = random_of(key.name)
        self._white, self._pushed = _shares(body, ROTATION_SHARE), _shares(body, BURST_ROTATION_SHARE)
        self._config = config
        self._sigma = float(self._random.choice(config.sigmas))
        self._burst = np.zeros(body.action_dim)
        self._burst_left = 0

    def apply(self, action: np.ndarray, phase: str | None = None) -> np.ndarray:
        """[A] in [-1, 1] -> [A] in [-1, 1]. The gripper command is never touched. `phase`: the policy's own."""
        random, config = self._random, self._config
        if self._burst_left == 0 and config.burst_rate > 0 and random.random() < config.burst_rate:
            self._burst_left = int(random.integers(4, 11))
            self._burst = self._pushed * config.burst_sigma * random.normal(size=len(self._pushed))
        push = self._white * self._sigma * random.normal(size=len(self._white))
        if self._burst_left > 0:
            self._burst_left -= 1
            push = push + self._burst
        if phase == "operating":
            push = config.operating_scale * push
        return np.clip(action + push, -1, 1).astype(np.float32)


class TeacherNoise:
    """What real teachers do, in the recorded target: flips of the gripper that they take back, jitter, stalls.

    A burst of flips starts only after the command has stood for MIN_COMMAND_FRAMES (or the longest burst and one), so
    that it can be told from a change that is meant. If the teacher changes its command during a burst or sooner after
    it than the burst was long, then the burst looks like an early change and what it took back is only the time
    between: the rest is made up for later.
    """

    def __init__(self, config: TeacherNoiseConfig, key: EpisodeKey, body: Embodiment = LIBERO):
        self._random = random_of(f"{key.name} teacher")
        self._jitter, self._white = config.jitter, _shares(body, ROTATION_SHARE)
        self._gripper = body.gripper
        self._flips = Bursts(config.flip_rate, config.flip_steps, self._random, FLIP_LEAD)
        self._stalls = Bursts(config.stall_rate, config.stall_steps, self._random)
        self._quiet_before = _quiet_before(config)
        self._closed: bool | None = None
        self._stood = 0
        self._burst = self._flip_left = self._stall_left = 0

    def apply(self, meant: np.ndarray) -> np.ndarray:
        """[A] in [-1, 1], what the teacher meant -> [A] in [-1, 1], what it asks for."""
        asked = meant.astype(np.float32)
        if self._jitter > 0:
            push = self._white * self._jitter * self._random.normal(size=len(self._white))
            asked = np.clip(asked + push, -1, 1).astype(np.float32)
        if self._stalls_now():
            asked[self._white > 0] = 0
        if self._gripper is not None and self._flips_now(bool(meant[self._gripper] > 0)):
            asked[self._gripper] *= -1
        return asked

    def _stalls_now(self) -> bool:
        self._stalls.tick()
        if self._stall_left == 0 and self._stalls.due:
            self._stall_left = self._stalls.due.popleft()
        if self._stall_left == 0:
            return False
        self._stall_left -= 1
        return True

    def _flips_now(self, closed: bool) -> bool:
        self._flips.tick()
        if closed is not self._closed:
            if self._stood < self._burst:
                self._flips.due.appendleft(self._burst - self._stood)
            self._closed, self._stood, self._burst, self._flip_left = closed, 0, 0, 0
        if self._flip_left == 0 and self._stood >= self._quiet_before and self._flips.due:
            self._burst = self._flip_left = self._flips.due.popleft()
        if self._flip_left == 0:
            self._stood += 1
            return False
        self._flip_left -= 1
        self._stood = 0
        return True


class Bursts:
    """Deals out bursts of 1 to `longest` steps that cover `rate` of all steps in expectation, `lead` steps early.

    Stratified: a burst of n steps is due at a random place in each stretch of n / rate steps. Independent draws would
    scatter the rate of 50 episodes by half a point at 10 %. The first stretch began before the episode, as in a process
    that has always run (longer ones are likelier to be under way), so that short episodes get their share, no more.
    """

    def __init__(self, rate: float, longest: int, random: np.random.Generator, lead: int = 0):
        self.due: deque[int] = deque()
        """Lengths of the bursts to start as soon as may be."""
        self._rate, self._longest, self._random = rate, longest, random
        self._now = lead
        if rate > 0:
            lengths = np.arange(1, longest + 1)
            self._length = int(random.choice(lengths, p=lengths / lengths.sum()))
            self._begin = -random.uniform(0, self._length / rate)
            self._at = self._begin + random.uniform(0, self._length / rate)

    def tick(self) -> None:
        """A step begins: bursts whose place it is become due."""
        self._now += 1
        while self._rate > 0 and self._at < self._now:
            if self._at >= 0:
                self.due.append(self._length)
            self._begin += self._length / self._rate
            self._length = int(self._random.integers(1, self._longest + 1))
            self._at = self._begin + self._random.uniform(0, self._length / self._rate)


def check_teacher_noise(config: TeacherNoiseConfig, body: Embodiment = LIBERO) -> None:
    """Raises UserError for noise that cannot be made."""
    if config.flip_rate > 0 and body.gripper is None:
        raise UserError("--teacher-noise.flip-rate turns a gripper's targets, and this suite's robot has no gripper")
    mean = (config.flip_steps + 1) / 2
    most = mean / (mean + _quiet_before(config))
    if config.flip_rate > most:
        raise UserError(
            f"--teacher-noise.flip-rate {config.flip_rate:g} is not a fraction from 0 to {most:.2f}, the most that "
            f"leaves {_quiet_before(config)} steps between bursts of up to {config.flip_steps}"
        )


def random_of(name: str) -> np.random.Generator:
    """Random numbers that depend on nothing but `name`."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def _quiet_before(config: TeacherNoiseConfig) -> int:
    return max(MIN_COMMAND_FRAMES, config.flip_steps + 1)


def _shares(body: Embodiment, rotation: float) -> np.ndarray:
    """[A] share of the noise that each number of an action gets: `rotation` an arm's rotations, none the gripper."""
    shares = np.ones(body.action_dim)
    if body.libero_arm:
        shares[3:6] = rotation
    if body.gripper is not None:
        shares[body.gripper] = 0
    return shares
