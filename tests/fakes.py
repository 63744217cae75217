"""Stand-ins of ours for a simulator and a policy: exact, tiny, and as strict as the real ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil

from vlaad_ray.types import CAMERAS, LIBERO, ActionChunk, Episode, EpisodeKey, InitState, Observation


class LineEnv:
    """A hand on a line. The goal holds while 0.5 <= position <= `upper`; the object drops if `drops` and released."""

    instruction = "move to the goal"
    embodiment = LIBERO
    budget = 20

    def __init__(self, upper: float = 2.0, drops: bool = False):
        self.upper, self.drops = upper, drops
        self.rendered = 0
        self.executed: list[np.ndarray] = []

    def reset(self, init: InitState, seed: int = 0) -> None:
        self.position, self.dropped, self.executed = 0.0, False, []

    def step(self, action: np.ndarray) -> None:
        self.executed.append(action)
        self.position += 0.1 * float(action[0])
        self.dropped |= self.drops and action[6] < 0 and self.position > 0.2

    def observe(self, images: bool) -> Observation:
        self.rendered += images
        drawn = {camera: np.full((8, 8, 3), int(100 * self.position) % 256, np.uint8) for camera in CAMERAS}
        return Observation(self.instruction, np.full(8, self.position, np.float32), drawn if images else {})

    def success(self) -> bool:
        return 0.5 - 1e-9 <= self.position <= self.upper and not self.dropped


class ScriptedLine:
    """Plays back chunks of actions, then repeats the last one."""

    def __init__(self, *chunks: list[list[float]], needs_images: bool = False):
        self.needs_images = needs_images
        self._chunks = [np.array(chunk, np.float32) for chunk in chunks]

    def reset(self, instruction: str) -> None:
        self.asked = 0

    def infer(self, observation: Observation) -> ActionChunk:
        chunk = self._chunks[min(self.asked, len(self._chunks) - 1)]
        self.asked += 1
        return ActionChunk(chunk, phase="approaching")


def key(index: int = 0, config_hash: str = "00000000", task: int = 0) -> EpisodeKey:
    return EpisodeKey("libero_object", task, InitState("stored", index), "scripted", 0, config_hash)


def episode(index: int = 0, steps: int = 6, image_every: int = 2, size: int = 16) -> Episode:
    """A valid episode with noise for content, the same for the same arguments."""
    random = np.random.default_rng(index)
    frames = tuple(
        random.integers(0, 256, (size, size, 3), dtype=np.uint8) if step % image_every == 0 else None
        for step in range(steps)
    )
    return Episode(
        key=key(index),
        instruction="pick up the milk and place it in the basket",
        proprio=random.normal(size=(steps, 8)).astype(np.float32),
        actions=random.uniform(-1, 1, (steps, 7)).astype(np.float32),
        executed=random.uniform(-1, 1, (steps, 7)).astype(np.float32),
        phases=("approaching",) * steps,
        images={camera: frames for camera in CAMERAS},
        success_step=steps - 2,
        success_final=True,
        budget=280,
    )


class Echo:
    """Answers each observation with its own first number, so that a mixed-up answer shows; phase: size of its batch.

    The first batch of all waits until the file `gate` exists; `hurt` happens once in a batch, before the file `scar`
    exists.
    """

    needs_images = False

    def __init__(self, gate: Path | None = None, scar: Path | None = None, hurt: Callable[[], object] | None = None):
        self._gate, self._scar, self._hurt = gate, scar, hurt

    def infer_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        while self._gate is not None and not self._gate.exists():
            time.sleep(0.01)
        if self._scar is not None and self._hurt is not None and not self._scar.exists():
            self._scar.touch()
            self._hurt()
        actions = [np.full((2, 7), observation.proprio[0], np.float32) for observation in observations]
        return [ActionChunk(action, phase=str(len(observations))) for action in actions]


def load_echo(device: str, **how: object) -> Echo:
    return Echo(**how)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(processes: Iterable[psutil.Process]) -> list[int]:
    """SIGKILL each; the ids of those that were still there: a parent's death may have ended a child already."""
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process.pid)
    return killed


def hang() -> None:
    threading.Event().wait()


def without_root_rights() -> None:
    """In a child: permissions hold for root as for anybody. PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and _READ_SEARCH."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)
