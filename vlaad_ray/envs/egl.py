"""Which GPU a simulator draws on.

MuJoCo takes EGL's first device that works, so all simulators of a node would draw on its first GPU. Here they draw on
the one that CUDA_VISIBLE_DEVICES names: Ray sets it to the GPU that it has given an actor.

EGL knows nothing of CUDA's numbers. Its devices are taken to be in CUDA's order, as they are on a node of equal GPUs,
or with CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

from __future__ import annotations

import os

from vlaad_ray.configs import UserError

CHOICE = "MUJOCO_EGL_DEVICE_ID"
"""Read by MuJoCo when a process draws for the first time."""


def choose_device() -> None:
    """Let this process draw on its own GPU. Before its first context; raises UserError for a device that is not."""
    if os.environ["MUJOCO_GL"].lower() != "egl":
        return
    from mujoco.egl import egl_ext

    count = len(egl_ext.eglQueryDevicesEXT())
    chosen = device(os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ.get(CHOICE), count)
    if chosen is not None:
        os.environ[CHOICE] = str(chosen)


def device(visible: str, asked: str | None, count: int) -> int | None:
    """Index of the EGL device to draw on; None: any that works.

    `visible`: CUDA_VISIBLE_DEVICES, whose first GPU is this process's own. `asked`: MUJOCO_EGL_DEVICE_ID, heeded where
    there is no such GPU, or EGL does not know it (a container without graphics draws in software). `count`: EGL's
    devices. Raises UserError when `asked` is none of them.
    """
    own = visible.split(",")[0].strip()
    if own.isdigit() and int(own) < count:
        return int(own)
    if asked is None:
        return None
    if not asked.isdigit() or int(asked) >= count:
        there = f"0 to {count - 1}" if count else "none"
        raise UserError(f"{CHOICE}={asked} is no EGL device of this machine: choose from {there}, or unset it")
    return int(asked)
