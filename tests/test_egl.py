"""Each simulator draws on its own GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlaad_ray.configs import UserError
from vlaad_ray.envs import egl

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("visible", "asked", "count", "drawn_on"),
    [
        ("3", None, 8, 3),
        ("3", "0", 8, 3),
        ("5,6", None, 8, 5),
        ("", "2", 8, 2),
        ("", None, 8, None),
        ("1", None, 1, None),
        ("1", "0", 1, 0),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", None, 8, None),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "4", 8, 4),
        ("-1", "0", 2, 0),
    ],
)
def test_a_simulator_draws_on_the_gpu_that_ray_gave_it(visible, asked, count, drawn_on):
    """MuJoCo takes the first, for all simulators of a node; a container without graphics has fewer than CUDA."""
    assert egl.device(visible, asked, count) == drawn_on


@pytest.mark.parametrize("asked", ["1", "first", "-1", ""])
def test_a_device_that_egl_does_not_have_is_said_in_one_line(monkeypatch, asked):
    message = f"MUJOCO_EGL_DEVICE_ID={asked} is no EGL device of this machine: choose from 0 to 0, or unset it"
    with pytest.raises(UserError, match=re.escape(message)):
        egl.device("", asked, 1)


def test_a_bad_device_ends_a_job_in_one_line(tmp_path):
    """Of all the actors' tracebacks it used to be the last that one saw."""
    command = [sys.executable, "jobs/collect.py", "--out", str(tmp_path / "out"), "--tasks", "0", "--init-states", "0"]
    environment = {**os.environ, "MUJOCO_EGL_DEVICE_ID": "77"}
    done = subprocess.run([*command, "--image-size", "32"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: MUJOCO_EGL_DEVICE_ID=77 is no EGL device of this machine: choose .*\n", done.stderr)


TWO_GPUS = """
import json, os, sys
from pathlib import Path
from functools import partial
from vlaad_ray.configs import CollectConfig, EnvConfig, FleetConfig
from vlaad_ray.collect import plan_episodes
from vlaad_ray.envs import egl, find_suite
from vlaad_ray.rollout.fleet import run_fleet
from vlaad_ray.runtime import cluster
from vlaad_ray.teachers import find_teacher
from vlaad_ray.teachers.scripted.expert import ScriptedTeacher

def devices(episode):
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    return {"of_two": egl.device(visible, "0", 2), "drawn_on": os.environ[egl.CHOICE]}

cluster.connect(num_cpus=2, num_gpus=2, include_dashboard=False)
fleet, env = FleetConfig(actors=2, gpus_per_actor=1), EnvConfig(image_size=32)
config = CollectConfig(out=Path("unused"), tasks="0-1", init_states="0", image_every=1000, env=env, fleet=fleet)
specs = plan_episodes(config, find_teacher("scripted", config.teacher_config, config.suite, 0))
make_env = partial(find_suite(config.suite).make, config=env)
report = run_fleet(specs, make_env, ScriptedTeacher, devices, fleet, lambda *_: None)
print(json.dumps(list(report.outcomes.values())))
"""


def test_two_actors_of_a_node_with_two_gpus_draw_on_one_each_whatever_the_environment_says():
    """Robosuite refused MUJOCO_EGL_DEVICE_ID=0 on the second. The GPUs are fake, and EGL here has one device only."""
    environment = {**os.environ, "MUJOCO_EGL_DEVICE_ID": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TWO_GPUS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.strip().splitlines()[-1])
    assert sorted(outcome["of_two"] for outcome in outcomes) == [0, 1]
    assert {outcome["drawn_on"] for outcome in outcomes} == {"0"}
