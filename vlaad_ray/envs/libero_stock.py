"""LIBERO's own environment, stepped and drawn as it comes: the loop by which the field evaluates.

Nothing of ours is in it: OffScreenRenderEnv rebuilds the simulation for every episode and draws both cameras at every
step, settling included. That is slow; `exact` mode shows the same to the last bit (tests/test_libero_stock.py).

It draws into whatever GL context is current, so it wants a process in which nothing else draws, as an actor's is.
"""

from __future__ import annotations

import contextlib
import io
import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlaad_ray.envs import egl
from vlaad_ray.envs.libero import NO_OP, LiberoEnv, import_libero
from vlaad_ray.envs.rendering import MUJOCO_CAMERAS
from vlaad_ray.types import LIBERO, InitState


class StockEnv(LiberoEnv):
    """One task in LIBERO's own OffScreenRenderEnv."""

    _seen: dict[str, np.ndarray]
    """What LIBERO returned last."""

    def _build(self, libero: SimpleNamespace, bddl_file: str) -> Any:
        choose_device()
        return libero.OffScreenRenderEnv(
            bddl_file_name=bddl_file,
            camera_heights=self.config.image_size,
            camera_widths=self.config.image_size,
            ignore_done=True,  # it would refuse its 1001st step; the budget says when an episode ends
        )

    def reset(self, init: InitState, seed: int = 0) -> None:
        """As the field starts a task's first episode: later ones would depend on how many were reset before."""
        self._seed(init, seed)
        with contextlib.redirect_stdout(io.StringIO()):
            self._seen = self._control.reset()
        if init.kind == "stored":
            self._seen = self._control.set_init_state(self._init_states[init.index])
        for _ in range(self.config.settle_steps):
            self.step(NO_OP)

    def step(self, action: np.ndarray) -> None:
        self._seen, _, _, _ = self._control.step(np.asarray(action, np.float64))
        self._check_numbers()

    def proprio(self) -> np.ndarray:
        """[8] float32, of LIBERO's observation as OpenVLA and openpi compute it."""
        seen = self._seen
        turned = import_libero().quat2axisangle(seen["robot0_eef_quat"].copy())  # which it clips in place
        return np.concatenate([seen["robot0_eef_pos"], turned, seen["robot0_gripper_qpos"]]).astype(np.float32)

    def render(self) -> dict[str, np.ndarray]:
        """Camera -> [H, W, 3] uint8: LIBERO's observation turned upright, drawn already."""
        images = {camera: self._seen[f"{MUJOCO_CAMERAS[camera]}_image"] for camera in LIBERO.cameras}
        return {camera: image[::-1].copy() for camera, image in images.items()}

    def success(self) -> bool:
        """What LIBERO's step returns as `done`."""
        return bool(self._control.check_success())


def choose_device() -> None:
    """Let robosuite draw where we would.

    By itself it takes CUDA_VISIBLE_DEVICES for an EGL device: it fails where that is empty (as Ray leaves it to an
    actor without GPUs) or names one that EGL does not have.
    """
    egl.choose_device()
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ.setdefault(egl.CHOICE, "0")
