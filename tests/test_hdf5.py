"""Demonstrations in HDF5: which side is up, which action an observation belongs to, and whether they still succeed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import demonstrations
import h5py
import numpy as np
import pytest
import synthetic

from vlaad_ray import store
from vlaad_ray.configs import EnvConfig, Hdf5Reading, ImportDatasetConfig, UserError
from vlaad_ray.envs.libero import LiberoEnv
from vlaad_ray.exchange import hdf5, replay
from vlaad_ray.exchange.bring import import_dataset, import_items, in_suite
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.teachers.scripted.expert import ScriptedTeacher
from vlaad_ray.types import Episode, EpisodeKey, InitState

STEPS = 24
LEAST = 0.95
"""Of replayed demonstrations that succeed, of those that did."""


def held(index: int) -> Episode:
    """The fingers follow the gripper's command, as real ones do."""
    episode = synthetic.episode(index, steps=STEPS)
    proprio = episode.proprio.copy()
    width = np.where(np.roll(episode.actions[:, 6], 1) > 0, 0.005, 0.04)
    proprio[:, 6], proprio[:, 7] = width, -width
    return dataclasses.replace(episode, proprio=proprio)


def config(place: Path, out: Path, **changes: Any) -> ImportDatasetConfig:
    return ImportDatasetConfig(place, out, source="hdf5", pictures="png", **changes)


def imported(settings: ImportDatasetConfig, reading: Hdf5Reading | None = None) -> list[Episode]:
    """In this process, without Ray."""
    plan = hdf5.plan(settings, reading or Hdf5Reading())
    for items in plan.items:
        import_items(items, settings, plan, set())
    return [store.read_episode(path) for path in store.list_episodes(settings.out)]


@pytest.fixture(scope="module")
def libero_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demos = [demonstrations.demo_of(held(index)) for index in (0, 2)]
    return demonstrations.write_libero(
        tmp_path_factory.mktemp("libero") / "cup_demo.hdf5", "pick up the red cup", demos
    )


def test_liberos_pictures_are_turned_and_join_the_action_that_follows(libero_file: Path, tmp_path: Path) -> None:
    """A student would see what its answer has already done, and upside down."""
    first, second = imported(config(libero_file, tmp_path))
    ours = held(0)
    assert first.instruction == "pick up the red cup" and first.embodiment == ours.embodiment
    np.testing.assert_array_equal(first.actions, ours.actions[1:])
    np.testing.assert_array_equal(first.proprio, ours.proprio[1:])
    for camera, images in ours.images.items():
        np.testing.assert_array_equal(np.stack(first.images[camera]), np.stack(images)[1:])
    assert (first.key.suite, first.key.init, second.key.init.label) == ("none", InitState("imported", 0), "i0001")
    assert first.success_final and store.read_metadata(store.list_episodes(tmp_path)[0])["imported"]["success_known"]


def test_robomimics_pictures_are_upright_and_join_the_action_beside_them(tmp_path: Path) -> None:
    ours = held(1)
    path = demonstrations.write_robomimic(tmp_path / "low_dim.hdf5", [demonstrations.demo_of(ours)])
    with pytest.raises(UserError, match="does not say what its demonstrations do; give --instruction TEXT"):
        imported(config(path, tmp_path / "out"))
    (back,) = imported(config(path, tmp_path / "out"), Hdf5Reading(instruction="lift the cube"))
    assert (back.instruction, back.embodiment.cameras) == ("lift the cube", ("agentview",))
    np.testing.assert_array_equal(back.actions, ours.actions)
    np.testing.assert_array_equal(np.stack(back.images["agentview"]), np.stack(ours.images["agentview"]))
    np.testing.assert_allclose(_unit(back.proprio[:, 3:6]), _unit(ours.proprio[:, 3:6]), atol=1e-5)
    assert not store.read_metadata(store.list_episodes(tmp_path / "out")[0])["imported"]["success_known"]


def _unit(turned: np.ndarray) -> np.ndarray:
    """Quaternions, of which q and -q are the same orientation."""
    angle = np.linalg.norm(turned, axis=1, keepdims=True)
    quaternion = np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * turned / angle], axis=1)
    return quaternion * np.sign(quaternion[:, :1])


def test_a_gripper_of_the_other_sign_is_found_and_turned(tmp_path: Path) -> None:
    """A student would open its hand where it is to close it."""
    ours = held(0)
    path = demonstrations.write_robomimic(tmp_path / "x.hdf5", [demonstrations.demo_of(ours)], gripper=-1)
    reading = Hdf5Reading(instruction="lift the cube")
    with pytest.raises(UserError, match=r"80 mm apart when told to close and 10 mm .* --gripper-means minus_closes"):
        imported(config(path, tmp_path / "out"), reading)
    (back,) = imported(config(path, tmp_path / "out", gripper_means="minus_closes"), reading)
    np.testing.assert_array_equal(back.actions, ours.actions)


def test_a_gripper_that_opens_at_one_and_actions_beyond_one_are_brought_into_range(tmp_path: Path) -> None:
    ours = held(0)
    demo = demonstrations.demo_of(ours)
    demo.actions[:] = np.where(np.arange(7) == 6, (1 - ours.actions) / 2, ours.actions)
    path = demonstrations.write_robomimic(tmp_path / "x.hdf5", [demo])
    (back,) = imported(
        config(path, tmp_path / "out", gripper_means="zero_closes"), Hdf5Reading(instruction="lift the cube")
    )
    np.testing.assert_array_equal(back.actions[:, 6], held(0).actions[:, 6])


def spoilt(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no HDF5"), "cannot be read as HDF5"),
        (lambda path: spoilt(path, "data"), "has no data/demo_0"),
        (lambda path: spoilt(path, "data/demo_0/obs"), "has no data/demo_0/obs; a file with observations is needed"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_a_file_of_another_kind_is_one_line(libero_file: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "x.hdf5"
    path.write_bytes(libero_file.read_bytes())
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        import_dataset(config(path, tmp_path / "out"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_without_demonstrations_and_a_replay_without_suite_are_one_line(
    libero_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"holds no demonstrations \(.hdf5 or .h5\)"):
        import_dataset(config(tmp_path, tmp_path / "out"))
    plan = hdf5.plan(config(libero_file, tmp_path / "out"), Hdf5Reading())
    with pytest.raises(UserError, match="--replay needs --suite"):
        replay.replay(config(libero_file, tmp_path / "out"), Hdf5Reading(replay=1), plan)


def demonstrated(root: Path, suite: str, task: int, starts: int) -> Path:
    """The scripted teacher's episodes that succeeded, with the simulator's states, as a file of LIBERO's."""
    env = LiberoEnv(suite, task, EnvConfig())
    demos = []
    for number in range(starts):
        key = EpisodeKey(suite, task, InitState("placement", number), "scripted", 0, "00000000")
        episode = run_episode(env, ScriptedTeacher(env), EpisodeSpec(key))
        if not episode.success_final:
            continue
        env.reset(key.init, key.seed)
        state = np.asarray(env.problem.sim.get_state().flatten())
        grey = {camera: tuple(np.zeros((8, 8, 3), np.uint8) for _ in range(len(episode))) for camera in episode.images}
        states = np.tile(state, (len(episode), 1))
        scene = env.problem.sim.model.get_xml()
        demos.append(demonstrations.demo_of(dataclasses.replace(episode, images=grey), states, scene))
    instruction = env.instruction
    env.close()
    return demonstrations.write_libero(root / f"{suite}_{task}.hdf5", instruction, demos)


def test_replayed_demonstrations_succeed_again(tmp_path: Path) -> None:
    """From the state, with fixtures where they stood: libero_goal's cabinet and stove stand elsewhere each time."""
    path = demonstrated(tmp_path, "libero_goal", 7, 2)  # turn on the stove
    settings = config(path, tmp_path / "out", suite="libero_goal")
    plan = in_suite(settings, hdf5.plan(settings, Hdf5Reading()))
    (items,) = plan.items
    assert [item.task for item in items] == [7, 7]
    found = replay.replay_file(items, "libero_goal")["replayed"]
    assert [each["success"] for each in found] == [True, True]
    with h5py.File(path, "r+") as file:  # elsewhere the same motions meet nothing
        for name in ("demo_0", "demo_1"):
            file[f"data/{name}/states"][0] = np.roll(file[f"data/{name}/states"][0], 1)
            file[f"data/{name}/actions"][:] = 0
    assert not any(each["success"] for each in replay.replay_file(items, "libero_goal")["replayed"])


@pytest.mark.slow
def test_of_twenty_demonstrations_a_task_nearly_all_succeed_again(ray_local: None, tmp_path: Path) -> None:
    """Through the command's own stage, of three tasks with and without fixtures."""
    for suite, task in (("libero_object", 0), ("libero_goal", 7), ("libero_spatial", 3)):
        demonstrated(tmp_path / suite, suite, task, 20)
        settings = config(tmp_path / suite, tmp_path / "out" / suite, suite=suite)
        settings = dataclasses.replace(settings, reading=Hdf5Reading(replay=20, replay_least=LEAST))
        summary = import_dataset(settings)
        succeeded = sum(each.success for each in summary.replayed)
        print(f"{suite} task {task}: {succeeded} of {len(summary.replayed)} replayed demonstrations succeed")
        assert len(summary.replayed) == summary.episodes >= 18
        assert succeeded / len(summary.replayed) >= LEAST
