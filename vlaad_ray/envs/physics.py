"""One forward pass a physics step instead of three.

In each of the 25 physics steps of a control step, robosuite 1.4 runs MuJoCo's forward pass three times over the same
state: in the environment, again in the controller, and once more inside mj_step. MuJoCo's own split of a step
(mj_step1: everything up to velocities; mj_step2: the rest and the integration) needs one. The equations are the same;
the constraint solver is warm-started once less, so trajectories differ from LIBERO's in the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco


@contextmanager
def single_pass(sim: Any) -> Iterator[None]:
    """While active, `sim` (robosuite's MjSim) computes positions and velocities once between two integrations."""
    model, data = sim.model._model, sim.data._data
    stale = True

    def forward() -> None:
        nonlocal stale
        if stale:
            mujoco.mj_step1(model, data)
            stale = False

    def step(with_udd: bool = True) -> None:
        nonlocal stale
        forward()
        mujoco.mj_step2(model, data)
        stale = True

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
