"""Noise that an episode may be run with: on what is executed (DART), and on what the teacher asks for.

Random numbers come from the episode's name alone, so an episode is the same on any actor.
"""

from __future__ import annotations

import hashlib
from collections import deque

import numpy as np

from vlaad_ray.configs import NoiseConfig, TeacherNoiseConfig, UserError
from vlaad_ray.semantics.phases import MIN_COMMAND_FRAMES
from vlaad_ray.types import ACTION_DIM, EpisodeKey

ROTATION_SHARE = 0.5
"""Noise on rotations, as a share of that on translations."""
FLIP_LEAD = 2
"""Steps by which flips fall due early. A burst waits 1.4 on average for its place, and one that the end cuts off
was not taken back: without, 9.8 % at a set 10 %, in episodes of 125 steps."""


class ActionNoise:
    """Noise on executed actions (DART, Laskey et al. 2017): the recorded target stays what the teacher asked for."""

    def __init__(self, config: NoiseConfig, key: EpisodeKey):
        self._random = random_of(key.name)
        self._config = config
        self._sigma = float(self._random.choice(config.sigmas))
        self._burst = np.zeros(ACTION_DIM)
        self._burst_left = 0

    def apply(self, action: np.ndarray) -> np.ndarray:
        """[7] in [-1, 1] -> [7] in [-1, 1]. The gripper command is never touched."""
        random, config = self._random, self._config
        if self._burst_left == 0 and config.burst_rate > 0 and random.random() < config.burst_rate:
            self._burst_left = int(random.integers(4, 11))
            self._burst = np.array([1, 1, 1, 0.3, 0.3, 0.3, 0]) * config.burst_sigma * random.normal(size=ACTION_DIM)
        push = _white(random, self._sigma)
        if self._burst_left > 0:
            self._burst_left -= 1
            push = push + self._burst
        return np.clip(action + push, -1, 1).astype(np.float32)


class TeacherNoise:
    """What real teachers do, in the recorded target: flips of the gripper that they take back, jitter, stalls.

    A burst of flips starts only after the command has stood for MIN_COMMAND_FRAMES (or the longest burst and one), so
    that it can be told from a change that is meant. If the teacher changes its command during a burst or sooner after
    it than the burst was long, then the burst looks like an early change and what it took back is only the time
    between: the rest is made up for later.
    """

    def __init__(self, config: TeacherNoiseConfig, key: EpisodeKey):
        self._random = random_of(f"{key.name} teacher")
        self._jitter = config.jitter
        self._flips = Bursts(config.flip_rate, config.flip_steps, self._random, FLIP_LEAD)
        self._stalls = Bursts(config.stall_rate, config.stall_steps, self._random)
        self._quiet_before = _quiet_before(config)
        self._closed: bool | None = None
        self._stood = 0
        self._burst = self._flip_left = self._stall_left = 0

    def apply(self, meant: np.ndarray) -> np.ndarray:
        """[7] in [-1, 1], what the teacher meant -> [7] in [-1, 1], what it asks for."""
        asked = meant.astype(np.float32)
        if self._jitter > 0:
            asked = np.clip(asked + _white(self._random, self._jitter), -1, 1).astype(np.float32)
        if self._stalls_now():
            asked[:6] = 0
        if self._flips_now(bool(meant[6] > 0)):
            asked[6] = -asked[6]
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


def check_teacher_noise(config: TeacherNoiseConfig) -> None:
    """Raises UserError for noise that cannot be made."""
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


def _white(random: np.random.Generator, sigma: float) -> np.ndarray:
    """[7] one draw of white noise; none on the gripper."""
    return np.array([1, 1, 1, *[ROTATION_SHARE] * 3, 0]) * sigma * random.normal(size=ACTION_DIM)
