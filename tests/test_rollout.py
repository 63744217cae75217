"""Stage 1 for real: LIBERO on Ray actors, killed, resumed, and the same whatever the number of actors."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import fakes
import psutil
import pytest
import ray
from plugins import reach
from plugins.reach_expert import ExpertConfig

from vlaad_ray import store
from vlaad_ray.collect import collect, plan_episodes
from vlaad_ray.configs import CollectConfig, EnvConfig, FleetConfig, NoiseConfig, NoSettings, UserError
from vlaad_ray.envs import find_suite
from vlaad_ray.rollout.fleet import run_fleet
from vlaad_ray.rollout.outcome import store_outcome
from vlaad_ray.summaries import EpisodeCounts
from vlaad_ray.teachers import find_teacher
from vlaad_ray.teachers.scripted.expert import ScriptedTeacher

for module in (fakes, sys.modules[__name__]):  # Ray's workers don't have this folder on their path
    ray.cloudpickle.register_pickle_by_value(module)
ROOT = Path(__file__).parents[1]
TEACHER = find_teacher("scripted", NoSettings(), "libero_object", 0)
NOISE = NoiseConfig(sigmas=(0.1, 0.2), burst_rate=0.02)


def small_config(out, **changes):
    """Six short episodes of two tasks, noisy, with a few small images."""
    settings = {
        "tasks": "0-1",
        "init_states": "0-1",
        "placements": 1,
        "image_every": 25,
        "noise": NOISE,
        "env": EnvConfig(image_size=32),
        "fleet": FleetConfig(actors=2),
        **changes,
    }
    return CollectConfig(out=out, **settings)


def libero(config):
    return partial(find_suite(config.suite).make, config=config.env)


def hashes(root):
    return {path.name: store.read_metadata(path)["content_hash"] for path in store.list_episodes(root)}


@pytest.fixture(scope="module")
def dataset(ray_local, tmp_path_factory):
    """What two actors collect in one go."""
    out = tmp_path_factory.mktemp("two-actors")
    summary = collect(small_config(out))
    assert summary.episodes == EpisodeCounts(planned=6, kept=6, failed=0, retried=0, lost=0)
    return out


def test_content_does_not_depend_on_the_number_of_actors(dataset, ray_local, tmp_path):
    collect(small_config(tmp_path, fleet=FleetConfig(actors=1)))
    assert hashes(tmp_path) == hashes(dataset)


def test_running_again_repeats_nothing(dataset):
    before = {path: path.stat().st_mtime_ns for path in store.list_episodes(dataset)}
    summary = collect(small_config(dataset))
    assert summary.new_steps == 0
    assert {path: path.stat().st_mtime_ns for path in store.list_episodes(dataset)} == before


def test_a_missing_episode_is_collected_again_and_comes_out_the_same(dataset, ray_local):
    before = hashes(dataset)
    store.list_episodes(dataset)[2].unlink()
    collect(small_config(dataset))
    assert hashes(dataset) == before


def test_a_killed_driver_loses_at_most_what_was_in_flight(dataset, ray_local, tmp_path):
    """SIGKILL to driver and Ray half-way, then the same work again: the planned episodes, none twice."""
    command = [sys.executable, "jobs/collect.py", "--out", str(tmp_path), "--tasks", "0-1", "--init-states", "0-1"]
    command += ["--placements", "1", "--image-every", "25", "--image-size", "32", "--actors", "2"]
    command += ["--noise.sigmas", "0.1", "0.2", "--noise.burst-rate", "0.02"]
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    for line in first.stdout:
        if re.match(r"collect: 2/6", line):
            break
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    fakes.kill(family)
    psutil.wait_procs(family, timeout=60)
    done = {path: path.stat().st_mtime_ns for path in store.list_episodes(tmp_path)}
    assert 2 <= len(done) < 6
    collect(small_config(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in done} == done, "collected twice"
    assert hashes(tmp_path) == hashes(dataset)
    assert store.read_json(tmp_path / "summary.json")["episodes"]["kept"] == 6


class Mortal(ScriptedTeacher):
    """Its process is killed in the middle of its second episode, once: before the file `scar` exists."""

    def __init__(self, scar, env):
        super().__init__(env)
        self.scar, self.episodes, self.asked = scar, 0, 0

    def reset(self, instruction):
        super().reset(instruction)
        self.episodes, self.asked = self.episodes + 1, 0

    def infer(self, observation):
        self.asked += 1
        if self.episodes == 2 and self.asked == 5 and not self.scar.exists():
            self.scar.touch()
            fakes.die()
        return super().infer(observation)


def test_a_killed_simulator_is_replaced_and_its_episode_retried(dataset, ray_local, tmp_path):
    config = small_config(tmp_path, tasks="0", fleet=FleetConfig(actors=1))
    specs = plan_episodes(config, TEACHER)
    outcomes = {}
    finish, mortal = partial(store_outcome, tmp_path, {}), partial(Mortal, tmp_path / "scar")
    report = run_fleet(
        specs, libero(config), mortal, finish, config.fleet, lambda spec, _: outcomes.update({spec.key: 1})
    )
    assert report.retried == 1
    assert report.lost == ()
    assert outcomes.keys() == {spec.key for spec in specs}


QUICK = partial(find_suite("reach").make, config=reach.ReachConfig())
"""An environment that is there at once: what follows is about actors, whatever they simulate."""
POINTER = find_teacher("reach_expert", ExpertConfig(), "reach", 0)


def quick_episodes(out, init_states):
    config = CollectConfig(out, suite="reach", tasks="0", init_states=init_states, env=reach.ReachConfig())
    return plan_episodes(config, POINTER)


class KilledAtBirth:
    """What makes environments; its arrival in an actor kills that, as often as `times`: before the actor is up."""

    def __init__(self, folder, times, make_env):
        self.folder, self.times, self.make_env = folder, times, make_env

    def __setstate__(self, state):
        self.__dict__ = state
        deaths = len(list(self.folder.iterdir()))
        if deaths < self.times:
            (self.folder / str(deaths)).touch()
            fakes.die()

    def __call__(self, task):
        return self.make_env(task)


def length(episode):
    return len(episode)


@pytest.mark.parametrize("times", [1, 2])
def test_a_simulator_killed_while_it_starts_is_replaced_and_counted(ray_local, tmp_path, times):
    """It used to end the whole run with Ray's traceback."""
    specs = quick_episodes(tmp_path / "out", "0")
    (tmp_path / "deaths").mkdir()
    make_env = KilledAtBirth(tmp_path / "deaths", times, QUICK)
    fleet = FleetConfig(actors=1, max_retries=2)
    report = run_fleet(specs, make_env, POINTER.make, length, fleet, lambda *_: None)
    assert len(list((tmp_path / "deaths").iterdir())) == times
    assert (report.retried, report.lost, len(report.outcomes)) == (times, (), 1)


def test_simulators_that_always_die_while_they_start_end_the_run_in_one_line(ray_local, tmp_path):
    """Two seats, three tries each: replaced for ever, they would keep the cluster busy with nothing."""
    specs = quick_episodes(tmp_path / "out", "0-1")
    (tmp_path / "deaths").mkdir()
    make_env = KilledAtBirth(tmp_path / "deaths", 100, QUICK)
    fleet = FleetConfig(actors=2, max_retries=2)
    message = r"simulators keep dying while they start, the last 3 times in a row: .* \(process \d+ on [\d.]+;"
    with pytest.raises(UserError, match=message) as raised:
        run_fleet(specs, make_env, POINTER.make, length, fleet, lambda *_: None)
    assert "\n" not in str(raised.value)
    assert 3 <= len(list((tmp_path / "deaths").iterdir())) <= 6, "two may have died at the same moment"


class Stuck(reach.ReachEnv):
    def step(self, action):
        fakes.hang()


def test_a_stuck_simulator_is_replaced_and_an_episode_that_always_sticks_is_lost(ray_local, tmp_path):
    fleet = FleetConfig(actors=1, episode_timeout_s=0.5, max_retries=1)
    specs, stuck = quick_episodes(tmp_path, "0"), partial(Stuck, config=reach.ReachConfig())
    finish = partial(store_outcome, tmp_path, {})
    report = run_fleet(specs, stuck, POINTER.make, finish, fleet, lambda *_: None)
    assert report.retried == 1
    assert report.lost == (specs[0].key.name,)


def test_a_bug_in_a_policy_stops_the_run_instead_of_counting_as_failed_episodes(ray_local, tmp_path):
    specs, finish = quick_episodes(tmp_path, "0"), partial(store_outcome, tmp_path, {})
    with pytest.raises(TypeError, match="ReachEnv"):  # a "policy" made by len(env)
        run_fleet(specs, QUICK, len, finish, FleetConfig(actors=1), lambda *_: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_states": "15-25"}, "20-25 are kept for evaluation"),
        ({"init_states": "0-99", "allow_eval_states": True}, "init state 99 of libero_object task 0 does not exist"),
        ({"tasks": "0-10"}, "libero_object has no task 10"),
        ({"suite": "libero_obj"}, "unknown suite 'libero_obj'"),
        ({"teacher": "openvla2"}, "unknown teacher 'openvla2'; choose one of scripted, openvla, remote"),
        ({"teacher": "openvla"}, "--teacher openvla needs --checkpoint DIR"),
        ({"execute": -1}, "--execute must be 0 or more"),
        ({"tasks": "3-1"}, "--tasks: '3-1' is not a range"),
        ({"tasks": "a"}, "--tasks: 'a' is not a range"),
        ({"image_every": 0}, "--image-every must be 1 or more"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        collect(small_config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_job_prints_a_users_error_as_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "jobs/collect.py", "--out", str(tmp_path / "out"), "--suite", "libero_objct"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: unknown suite 'libero_objct'; choose one of")
    assert "Traceback" not in result.stderr
