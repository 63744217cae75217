"""A student acts, and its teacher takes over or says what it would do: what is executed, recorded and learnt from."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import synthetic
from fakes import LineEnv, ScriptedLine, key
from plugins import reach
from plugins.reach_expert import ExpertConfig

from vlaad_ray import store
from vlaad_ray.collect import collect
from vlaad_ray.configs import CollectConfig, DaggerConfig, FleetConfig, NoiseConfig, UserError
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.rollout.dagger import Guided
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.train.data import episode_pictures
from vlaad_ray.types import Collected

ROOT = Path(__file__).parents[1]


def line(speed, gripper=-1.0, images=False):
    """Moves along the line; open gripper unless told otherwise."""
    return ScriptedLine([[speed, 0, 0, 0, 0, 0, gripper]], needs_images=images)


def episode(mix=None, latest=8, rest_steps=0, student=0.02, teacher=1.0, name=0, **spec):
    policy = Guided(line(teacher), line(student, images=True), mix, latest, rest_steps)
    return run_episode(LineEnv(), policy, EpisodeSpec(key(name), **spec))


def test_the_student_acts_until_the_teacher_takes_over_whose_steps_alone_are_to_be_learnt_from():
    noisy = NoiseConfig(sigmas=(0.2,))
    made = [episode(name=name, noise=noisy, image_every=1) for name in range(20)]
    before = [int(np.argmax(each.taught)) for each in made]
    assert set(before) <= set(range(1, 9)) and len(set(before)) > 3, "a step that the episode's name draws"
    for each, steps in zip(made, before, strict=True):
        np.testing.assert_allclose(each.executed[:steps], each.actions[:steps])
        np.testing.assert_allclose(each.actions[:steps, 0], 0.02)
        np.testing.assert_allclose(each.actions[steps:, 0], 1.0)
        assert (each.executed[steps:, 0] != each.actions[steps:, 0]).any(), "the teacher's steps are disturbed"
        assert each.success_ever and each.taught[steps:].all()
        assert each.budget == LineEnv.budget + steps, "it counts from the takeover"
        assert set(each.phases[:steps]) == {None}
    again = episode(name=3, noise=noisy, image_every=1)
    np.testing.assert_array_equal(again.executed, made[3].executed)


def test_the_teacher_takes_over_from_a_student_at_rest():
    made = episode(latest=1000, rest_steps=5, student=0.0)
    assert int(np.argmax(made.taught)) == 5
    assert made.success_ever


def test_a_student_that_needs_no_teacher_leaves_nothing_to_learn():
    made = episode(latest=1000, student=1.0)
    assert made.success_ever and not made.taught.any()


def test_of_a_mixture_either_acts_and_what_the_teacher_says_is_recorded():
    made = [episode(mix=0.5, student=0.5, name=name) for name in range(10)]
    for each in made:
        assert each.taught is None
        np.testing.assert_allclose(each.actions[:, 0], 1.0)
    executed = np.concatenate([each.executed[:, 0] for each in made])
    assert 0.2 < np.isclose(executed, 0.5).mean() < 0.8
    assert np.isin(executed.round(6), (0.5, 1.0)).all()


def test_steps_of_the_student_are_stored_marked_and_not_trained_on(tmp_path):
    made = episode(image_every=1)
    steps = int(np.argmax(made.taught))
    path = store.write_episode(tmp_path, made, {"render": "fast"})
    back = store.read_episode(path)
    np.testing.assert_array_equal(back.taught, made.taught)
    pictures = episode_pictures(back, StudentConfig(cameras=("agentview",), image_size=8))
    assert pictures["steps"].tolist() == list(range(steps, len(made)))
    repaired = store.read_episode(store.copy_with_actions(path, tmp_path / "copy", made.actions, {}))
    np.testing.assert_array_equal(repaired.taught, made.taught)
    plain = dataclasses.replace(made, taught=None)
    assert store.read_episode(store.write_episode(tmp_path / "plain", plain, {"render": "fast"})).taught is None


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Of the suite that goes to corners, with random weights."""
    return synthetic.write_student(tmp_path_factory.mktemp("student"), reach.POINT)


def config(out, student, **changes):
    dagger = {name: changes.pop(name) for name in ("mix", "takeover_within") if name in changes}
    settings = {
        "tasks": "0-1",
        "init_states": "0-2",
        "suite": "reach",
        "teacher": "reach_expert",
        "env": reach.ReachConfig(),
        "teacher_config": ExpertConfig(),
        "fleet": FleetConfig(actors=2, cpus_per_actor=0.5),
        **changes,
    }
    return CollectConfig(out, dagger=DaggerConfig(student, **dagger), **settings)


def hashes(root):
    return {path.name: store.read_metadata(path)["content_hash"] for path in store.list_episodes(root)}


def test_a_round_is_the_same_from_any_number_of_actors_and_names_the_student(ray_local, student, tmp_path):
    summary = collect(config(tmp_path / "two", student))
    assert summary.episodes.kept == 6
    assert 0 < summary.taught_frames < summary.frames
    collect(config(tmp_path / "one", student, fleet=FleetConfig(actors=1)))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert all("-reach_expert-after-student-" in name for name in hashes(tmp_path / "two"))
    summary = collect(config(tmp_path / "mixed", student, mix=0.5))
    assert summary.taught_frames == summary.frames
    assert all("-reach_expert-beside-student-" in name for name in hashes(tmp_path / "mixed"))


def test_a_round_killed_in_the_middle_loses_and_doubles_nothing(ray_local, student, tmp_path):
    flags = [
        "--plugin",
        "plugins.reach",
        "--plugin",
        "plugins.reach_expert",
        "--suite",
        "reach",
        "--teacher",
        "reach_expert",
    ]
    flags += ["--tasks", "0-1", "--init-states", "0-7", "--actors", "1", "--student", str(student)]
    command = [sys.executable, "jobs/collect.py", *flags, "--out"]
    here = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    running = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, env=here)
    while not list((tmp_path / "killed").glob("outcomes/*.json")):
        with pytest.raises(subprocess.TimeoutExpired):  # still there: waits for an outcome, not for a time
            running.wait(0.02)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    settings = {"tasks": "0-1", "init_states": "0-7"}
    before = hashes(tmp_path / "killed")
    assert 0 < len(before) < 16
    collect(config(tmp_path / "killed", student, **settings))
    collect(config(tmp_path / "whole", student, **settings))
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert before.items() <= hashes(tmp_path / "killed").items()
    assert len(store.read_outcomes(tmp_path / "killed", Collected)) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "libero_object", "teacher": "scripted", "mix": 0.5}, "--mix: the teacher scripted plans"),
        ({"student": Path("nowhere")}, "--student: nowhere is not there"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_starts(student, tmp_path, changes, message):
    given = changes.pop("student", student)
    with pytest.raises(UserError, match=message):
        collect(dataclasses.replace(config(tmp_path, given, **changes)))
