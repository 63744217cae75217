"""A suite and a teacher from outside the package, with another robot: two numbers an action, one camera, no gripper."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from fakes import key
from plugins import reach
from plugins.reach_expert import Expert, ExpertConfig

from vlaad_ray import store
from vlaad_ray.annotate import annotate
from vlaad_ray.collect import collect, plan_episodes
from vlaad_ray.configs import (
    AnnotateConfig,
    AuditConfig,
    CollectConfig,
    EnvConfig,
    EvalConfig,
    FleetConfig,
    NoiseConfig,
    NoSettings,
    TeacherNoiseConfig,
    UserError,
)
from vlaad_ray.envs import SUITES, find_suite
from vlaad_ray.evaluate import evaluate, videos
from vlaad_ray.quality.measure import audit_episode
from vlaad_ray.quality.summary import summarise
from vlaad_ray.report import timeline
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.rollout.noise import ActionNoise, TeacherNoise
from vlaad_ray.serving import protocol
from vlaad_ray.summaries import EpisodeCounts, TaskCounts
from vlaad_ray.teachers import find_teacher
from vlaad_ray.types import ActionChunk, InitState

ROOT = Path(__file__).parents[1]


def config(out, **changes):
    settings = {
        "suite": "reach",
        "teacher": "reach_expert",
        "tasks": "0-3",
        "init_states": "0-1",
        "placements": 1,
        "env": reach.ReachConfig(),
        "teacher_config": ExpertConfig(),
        "noise": NoiseConfig(sigmas=(0.0, 0.3), burst_rate=0.1),
        "fleet": FleetConfig(actors=2, cpus_per_actor=0.5),
        **changes,
    }
    return CollectConfig(out=out, **settings)


def hashes(root):
    return {path.name: store.read_metadata(path)["content_hash"] for path in store.list_episodes(root)}


def episode(env=None, policy=None, **spec):
    env = env or reach.ReachEnv(0, reach.ReachConfig())
    return run_episode(env, policy or Expert(1.0, env), EpisodeSpec(key(), **spec))


def test_collection_stores_what_the_robot_is_and_is_the_same_from_any_number_of_actors(ray_local, tmp_path):
    summary = collect(config(tmp_path / "two"))
    assert summary.episodes == EpisodeCounts(planned=12, kept=12, failed=0, retried=0, lost=0)
    collect(config(tmp_path / "one", fleet=FleetConfig(actors=1)))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    stored = store.read_episode(store.list_episodes(tmp_path / "two")[0])
    assert stored.embodiment == reach.POINT
    assert (stored.actions.shape[1], stored.proprio.shape[1]) == (2, 4)
    assert [image.shape for image in stored.images["top"]] == [(32, 32, 3)] * len(stored)


def test_further_starts_are_tried_until_so_many_episodes_are_kept_and_are_the_same_from_any_number_of_actors(
    ray_local, tmp_path
):
    """From some starts 9 steps are too few."""
    some = {"placements": 0, "keep": 5, "tries": 4, "budget": 9, "tasks": "0-1"}
    summary = collect(config(tmp_path / "two", **some))
    assert summary.episodes.failed > 0
    assert [task.kept for task in summary.tasks.values()] == [5, 5]
    names = hashes(tmp_path / "two")
    assert {name.split("-")[2][0] for name in names} == {"s", "p"}, "stored init states come first, then placements"
    collect(config(tmp_path / "one", **some, fleet=FleetConfig(actors=1)))
    assert hashes(tmp_path / "one") == names
    again = collect(config(tmp_path / "two", **some))
    assert (again.new_steps, again.episodes) == (0, summary.episodes)


def test_a_task_that_keeps_too_few_is_given_up_after_its_tries_and_said(ray_local, tmp_path):
    summary = collect(config(tmp_path, placements=0, keep=2, tries=3, budget=1, tasks="1"))
    assert summary.tasks == {"1": TaskCounts(kept=0, failed=6)}
    (warning,) = summary.warnings
    assert warning.startswith("task 1: 0 of 2 episodes kept after 6 tries; raise --tries or --budget")


def test_keep_and_placements_are_one_or_the_other(tmp_path):
    with pytest.raises(UserError, match="leave --placements out"):
        collect(config(tmp_path, keep=2))


def test_the_teacher_is_evaluated_on_held_out_states_and_filmed(ray_local, tmp_path):
    settings = {"suite": "reach", "tasks": "0-1", "init_states": "8-9", "teacher_config": ExpertConfig(0.5)}
    fleet = FleetConfig(actors=2, cpus_per_actor=0.5)
    summary = evaluate(EvalConfig("reach_expert", tmp_path, **settings, videos=1, fleet=fleet))
    assert (summary.success.final.k, summary.success.final.n) == (4, 4)
    assert summary.budget == reach.ReachEnv.budget
    assert len(summary.videos) == 1


def test_settings_of_suite_and_teacher_name_the_episodes(tmp_path):
    """Else data of two speeds would be taken for one another."""

    def name(env, teacher):
        described = find_teacher("reach_expert", teacher, "reach", 0)
        return plan_episodes(config(tmp_path, env=env), described)[0].key.name

    names = {name(reach.ReachConfig(a), ExpertConfig(b)) for a in (0.1, 0.2) for b in (0.5, 1.0)}
    assert len(names) == 4
    assert name(EnvConfig(), ExpertConfig()) in names  # another suite's defaults, left by the caller


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": EnvConfig(image_size=64)}, "suite reach takes settings of ReachConfig, not EnvConfig"),
        ({"teacher_config": reach.ReachConfig(0.3)}, "teacher reach_expert takes settings of ExpertConfig"),
        (
            {"teacher": "scripted", "teacher_config": NoSettings()},
            "scripted knows LIBERO's arm and cameras only, not those of reach",
        ),
        ({"tasks": "4"}, "reach has no task 4; choose from 0-3"),
        ({"init_states": "7-8"}, "8-8 are kept for evaluation (8-9); choose from 0-7"),
        ({"init_states": "10"}, "init state 10 of reach task 0 does not exist; choose from 0-9"),
        ({"teacher_noise": TeacherNoiseConfig(flip_rate=0.1)}, "this suite's robot has no gripper"),
    ],
)
def test_what_does_not_fit_the_suite_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        collect(config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stored(tmp_path):
    """Two episodes, without Ray."""
    for number in range(2):
        env = reach.ReachEnv(number, reach.ReachConfig())
        spec = EpisodeSpec(key(number, task=number), image_every=1)
        store.write_episode(tmp_path / "data", run_episode(env, Expert(1.0, env), spec), {"render": None})
    return tmp_path / "data"


def test_annotation_says_at_once_what_it_needs(stored, tmp_path):
    with pytest.raises(UserError, match=r"cannot be annotated: .* hand position, orientation and gripper"):
        annotate(AnnotateConfig(data=stored, out=tmp_path / "notes"))
    assert not (tmp_path / "notes").exists()


def test_the_audit_measures_motions_and_leaves_out_gripper_and_phases(stored, tmp_path):
    records = [
        audit_episode(path, store.read_episode(path, images=False), store.read_metadata(path), 3, None)
        for path in store.list_episodes(stored)
    ]
    summary = summarise(records, AuditConfig(out=tmp_path, data=stored))
    assert summary.verdict[0] == "No gripper: its targets are not judged."
    assert summary.phases == {} and summary.moved_jerk is None
    assert summary.asked_jerk > 0 and summary.stalled == 0


def test_the_report_draws_an_episode_at_its_own_rate_with_the_numbers_that_there_are(stored, tmp_path):
    drawn = timeline.timeline(tmp_path)
    assert "steps at 10 a second" in drawn and "proprio 3" in drawn
    assert "gripper (mm)" not in drawn


def test_without_a_gripper_an_episode_ends_with_the_step_that_reaches_the_goal():
    """The opening command that lets go would be a motion here: it would drive the point off its goal."""
    env = reach.ReachEnv(0, reach.ReachConfig())
    done = episode(env)
    assert done.success_final and done.success_step == len(done) < env.budget
    np.testing.assert_array_equal(env.at, np.clip(env.at, -0.8, -0.6))


def test_noise_shakes_every_motion_of_a_robot_without_gripper():
    still = np.zeros(2, np.float32)
    executed = ActionNoise(NoiseConfig(sigmas=(0.2,)), key(), reach.POINT)
    asked = TeacherNoise(TeacherNoiseConfig(jitter=0.2), key(), reach.POINT)
    for noise in (executed, asked):
        spread = np.stack([noise.apply(still) for _ in range(2000)]).std(axis=0)
        np.testing.assert_allclose(spread, 0.2, rtol=0.1)  # n = 2000: 1.6 % a sigma
    stalls = TeacherNoise(TeacherNoiseConfig(stall_rate=0.5), key(), reach.POINT)
    moved = np.stack([stalls.apply(np.ones(2, np.float32)) for _ in range(200)])
    assert set(map(tuple, moved.tolist())) == {(0.0, 0.0), (1.0, 1.0)}


def test_an_action_or_an_observation_of_another_robot_stops_the_run():
    class Wide(Expert):
        def infer(self, observation):
            return ActionChunk(np.zeros((1, 7), np.float32))

    class Blind(reach.ReachEnv):
        def observe(self, images):
            seen = super().observe(images)
            return type(seen)(seen.instruction, seen.proprio[:2], seen.images)

    env = reach.ReachEnv(0, reach.ReachConfig())
    with pytest.raises(ValueError, match="unusable action"):
        episode(env, Wide(1.0, env))
    with pytest.raises(ValueError, match="proprioception"):
        episode(Blind(0, reach.ReachConfig()))


def test_a_video_plays_at_the_robots_own_rate(tmp_path):
    videos.store_video(tmp_path, episode(image_every=videos.VIDEO_EVERY))
    (path,) = tmp_path.glob("*.mp4")
    assert next(imageio_ffmpeg.read_frames(str(path)))["fps"] == reach.POINT.rate_hz / videos.VIDEO_EVERY


def test_observations_of_another_robot_travel_and_a_wrong_camera_or_state_is_named():
    env = reach.ReachEnv(0, reach.ReachConfig())
    env.reset(InitState("stored", 0))
    seen = env.observe(images=True)
    message = protocol.unpack(protocol.pack(protocol.pack_observation(seen)))
    assert "observation/top_image" in message
    back = protocol.unpack_observation(message, ("top",), reach.POINT)
    np.testing.assert_array_equal(back.images["top"], seen.images["top"])
    np.testing.assert_array_equal(back.proprio, seen.proprio)
    with pytest.raises(protocol.MessageError, match="'observation/top_image' is no camera's key"):
        protocol.unpack_observation(message)  # for LIBERO's robot
    with pytest.raises(protocol.MessageError, match=r"must be \[4\] finite numbers"):
        protocol.unpack_observation({**message, protocol.STATE: np.zeros(8)}, ("top",), reach.POINT)


def test_a_job_takes_suite_teacher_and_their_flags_from_plugins(tmp_path):
    command = [sys.executable, "jobs/collect.py", "--plugin", "plugins.reach", "--plugin", "plugins.reach_expert"]
    command += ["--suite", "reach", "--teacher", "reach_expert", "--stride", "0.2", "--speed", "0.5"]
    command += ["--tasks", "0", "--init-states", "0", "--actors", "1", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert store.read_json(tmp_path / "config.json")["config"]["env"] == {"stride": 0.2}
    (path,) = store.list_episodes(tmp_path)
    assert np.abs(store.read_episode(path, images=False).actions).max() == 0.5


def test_every_variant_of_a_libero_suite_is_there_with_init_states_and_its_parents_budget():
    assert find_suite("libero_goal_swap").budget == 300
    for name, suite in SUITES.items():
        if name.startswith("libero_"):
            assert len(suite.tasks()) > 0 and suite.init_states(0) > 0, name


def test_the_documentation_shows_these_very_files():
    shown = (ROOT / "docs" / "extending.md").read_text()
    for path in sorted((ROOT / "tests" / "plugins").glob("*.py")):
        assert f"```python\n{path.read_text()}```\n" in shown, path.name
        assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 40, path.name


def test_a_suites_environment_is_made_from_its_settings():
    make = partial(find_suite("reach").make, config=reach.ReachConfig(stride=0.5))
    env = make(3)
    env.reset(InitState("stored", 0))
    before = env.at
    env.step(np.ones(2))
    np.testing.assert_allclose(env.at - before, 0.5)
