"""LIBERO's two cameras drawn by our own environment on each EGL device: the GPU, and Mesa's software (llvmpipe).

Which EGL devices there are is up to the vendors' libraries that libglvnd finds: NVIDIA's driver brings one device a
GPU, Mesa's library one that draws on the CPU. A process of its own draws on each, chosen by MUJOCO_EGL_DEVICE_ID.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlaad_ray.configs import EnvConfig
from vlaad_ray.experiments.bench.gpu import alone
from vlaad_ray.types import CAMERAS, InitState

SUITE, TASK = "libero_object", 0
WARM = 5
"""Pictures before those that count: meshes go to the device."""
Kind = Literal["NVIDIA", "software", "other"]
MARKS: dict[str, Kind] = {"EGL_NV_device_cuda": "NVIDIA", "EGL_MESA_device_software": "software"}
"""Extension of an EGL device -> what it is."""
NO_DEVICE: dict[Kind, str] = {
    "NVIDIA": "there is none; a container needs NVIDIA_DRIVER_CAPABILITIES=all, which lets the driver's EGL in",
    "software": "there is none; apt-get install libegl-mesa0",
}
"""Why a kind of device may be missing."""


@dataclass(frozen=True)
class RenderingRequest:
    steps: int
    """Control steps, a picture of each camera after every one."""
    pixels: int
    device: str
    """cuda: a missing NVIDIA device is worth a line."""
    limit_s: float
    """For each device."""
    logs: str
    """Directory for what the processes print."""


def time_devices(request: RenderingRequest) -> dict[str, Any]:
    """Every device that is this process's to use, one after the other; for one that does not draw, why."""
    kinds = device_kinds()
    devices: list[dict[str, Any]] = []
    for index in own_devices(kinds, os.environ.get("CUDA_VISIBLE_DEVICES")):
        # The variable would choose the device, and robosuite refuses one that it does not name.
        environment = {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": str(index), "CUDA_VISIBLE_DEVICES": None}
        log = Path(request.logs) / f"drawing-{index}.log"
        done = alone.measure("drawing", dataclasses.asdict(request), log, request.limit_s, environment, inner=True)
        devices.append({"index": index, "kind": kinds[index], "problem": done.problem, **(done.answer or {})})
    wanted: tuple[Kind, ...] = ("NVIDIA", "software") if request.device == "cuda" else ("software",)
    devices += [{"index": "any", "kind": kind, "problem": NO_DEVICE[kind]} for kind in wanted if kind not in kinds]
    return {"devices": devices, "pixels": request.pixels, "cameras": len(CAMERAS)}


def device_kinds() -> list[Kind]:
    """Of EGL's devices, in the order in which MuJoCo counts them."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    from mujoco.egl import egl_ext
    from OpenGL.EGL.EXT.device_query import eglQueryDeviceStringEXT

    names = [eglQueryDeviceStringEXT(each, egl_ext.EGL_EXTENSIONS) or b"" for each in egl_ext.eglQueryDevicesEXT()]
    return [kind_of(name.decode().split()) for name in names]


def kind_of(extensions: Sequence[str]) -> Kind:
    return next((kind for mark, kind in MARKS.items() if mark in extensions), "other")


def own_devices(kinds: Sequence[Kind], visible: str | None) -> list[int]:
    """Indices of the devices to draw on. Of GPUs those alone that `visible`, CUDA_VISIBLE_DEVICES, names by number:
    others may be at work for somebody else.
    """
    numbers = None if visible is None else [int(each) for each in visible.split(",") if each.strip().isdigit()]
    gpus = [index for index, kind in enumerate(kinds) if kind == "NVIDIA"]
    mine = gpus if not numbers else [gpus[number] for number in numbers if number < len(gpus)]
    return [index for index, kind in enumerate(kinds) if kind != "NVIDIA" or index in mine]


def time_drawing(request: RenderingRequest) -> dict[str, Any]:
    """Pictures a second of both cameras, and what OpenGL says draws them."""
    from OpenGL import GL

    fast = draw("fast", request)
    renderer = GL.glGetString(GL.GL_RENDERER).decode()  # of the context that has just drawn
    return {"renderer": renderer, "fast": fast, "exact": draw("exact", request)}


def draw(render: Literal["fast", "exact"], request: RenderingRequest) -> dict[str, float]:
    """`pictures_per_second` counts drawing and reading back alone, `steps_per_second` physics as well."""
    from vlaad_ray.envs.libero import LiberoEnv

    env = LiberoEnv(SUITE, TASK, EnvConfig(render=render, image_size=request.pixels))
    env.reset(InitState("stored", 0))
    rng = np.random.default_rng(0)
    drawing, began = 0.0, 0.0
    for step in range(WARM + request.steps):
        if step == WARM:
            drawing, began = 0.0, time.perf_counter()
        env.step(np.append(rng.uniform(-0.3, 0.3, 6), -1))
        asked = time.perf_counter()
        pictures = env.render()  # arrays on the CPU: the device has drawn them
        drawing += time.perf_counter() - asked
    whole = time.perf_counter() - began
    return {"pictures_per_second": len(pictures) * request.steps / drawing, "steps_per_second": request.steps / whole}
