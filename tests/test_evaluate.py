"""Stage 5: what is reported, and the same loop for real."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlaad_ray import store
from vlaad_ray.configs import (
    STUDIES,
    ActuationConfig,
    EnvConfig,
    EvalConfig,
    FleetConfig,
    TeacherNoiseConfig,
    UserError,
    config_hash,
    named_settings,
)
from vlaad_ray.envs.libero_suites import images
from vlaad_ray.evaluate import outcomes as results
from vlaad_ray.evaluate import stage as evaluate
from vlaad_ray.evaluate.metrics import find_metrics
from vlaad_ray.evaluate.policies import find_policy
from vlaad_ray.models.student.checkpoint import save_pretrained
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.rollout.fleet import check_images
from vlaad_ray.summaries import EvalSummary, Success
from vlaad_ray.types import Outcome

SMALL = {"suite": "libero_object", "env": EnvConfig(image_size=32), "fleet": FleetConfig(actors=1)}


def outcome(task, init, ever, final=None, steps=100, flips=2):
    final = ever if final is None else final
    metrics = {} if flips is None else {"gripper_flips": flips}
    return Outcome("libero_object", task, init, f"task {task}", ever, final, steps, steps, metrics)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained student with a record of what it was "trained" on."""
    directory = tmp_path_factory.mktemp("student")
    tokenizer = train_tokenizer(("pick up the milk", "approaching the milk"), 16)
    student = SmallStudent(
        SmallConfig(image_size=32, width=8, hidden=32, vocabulary=tokenizer.vocabulary, text_length=16)
    )
    training = {"render": "fast", "init_states": {"libero_object": {"0": ["s0021"]}}}
    save_pretrained(directory, student, tokenizer, training)
    return directory


def test_summary_counts_by_task_and_keeps_the_two_kinds_of_success_apart():
    outcomes = [outcome(0, f"s{i:04d}", ever=i < 9, final=i < 7) for i in range(10)]
    outcomes += [outcome(3, f"s{i:04d}", ever=True) for i in range(10)]
    success, tasks = results.success(outcomes), results.by_task(outcomes)
    assert (success.ever.k, success.final.k) == (19, 17)
    assert list(tasks) == ["0", "3"]
    assert (tasks["0"].ever.k, tasks["0"].instruction) == (9, "task 0")
    assert tasks["3"].ever.wilson95 == pytest.approx([0.722, 1.0], abs=1e-3)
    assert results.flips(outcomes) == pytest.approx((240 * 40 / 2000, 2))


def test_what_there_is_not_has_no_key_in_the_summary_and_reads_as_none(tmp_path):
    """Flips of a robot without gripper, pairs without a baseline; null stays for what is said to be nothing."""
    outcomes = [outcome(0, "p0000", ever=True, flips=None)]
    assert results.flips(outcomes) == (None, None)
    summary = EvalSummary(
        policy="scripted",
        suite="libero_object",
        init_states="",
        budget=280,
        success=results.success(outcomes),
        tasks=results.by_task(outcomes),
        steps_mean=results.steps_mean(outcomes),
        episodes=("one",),
    )
    store.write_summary(tmp_path, summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert not {"gripper_flips_per_240", "gripper_flips_per_episode", "paired"} & written.keys()
    assert written["checkpoint"] is None
    assert written["tasks"]["0"]["ever"]["wilson95"] == list(summary.success.ever.wilson95)
    assert store.read_summary(tmp_path, EvalSummary) == summary


def test_the_summary_of_an_older_version_is_read(tmp_path):
    """Comparisons and reports outlive what wrote the evaluation: its later keys are missing, and another is new."""
    success = {"n": 1, "k": 1, "rate": 1.0, "wilson95": [0.2, 1.0]}
    both = {"ever": success, "final": success}
    old = {"policy": "a", "suite": "s", "init_states": "0", "budget": 9, "success": both, "steps_mean": 5.0}
    old |= {"tasks": {"0": {**both, "instruction": "go"}}, "episodes": [], "from_a_later_version": 1}
    store.write_json(tmp_path / "summary.json", old)
    summary = store.read_summary(tmp_path, EvalSummary)
    assert summary.tasks["0"].ever.wilson95 == (0.2, 1.0)
    assert (summary.nudge_after, summary.paired, summary.videos) == (None, None, ())


def test_comparison_pairs_by_start_whatever_the_policies_are_called():
    a = [outcome(0, f"s{i:04d}", ever=True) for i in range(8)]
    b = [outcome(0, f"s{i:04d}", ever=i >= 6) for i in range(10)]
    pair = results.compare(a, b).ever
    assert (pair.n, pair.only_a, pair.only_b) == (8, 6, 0)
    assert pair.mcnemar_p == pytest.approx(2 / 64)
    with pytest.raises(UserError, match="share no task and init state"):
        results.compare(a, [outcome(1, "s0000", ever=True)])


def test_teacher_is_evaluated_resumed_and_filmed(ray_local, tmp_path):
    config = EvalConfig(policy="scripted", out=tmp_path, tasks="0", init_states="20-21", videos=1, **SMALL)
    summary = evaluate.evaluate(config)
    assert summary.success.ever == Success(2, 2, 1.0, pytest.approx((0.342, 1), abs=1e-3))
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert summary.videos == (f"videos/{video.name}",)
    assert store.read_summary(tmp_path, EvalSummary) == summary
    assert video.read_bytes()[4:8] == b"ftyp"
    store_time = {path: path.stat().st_mtime_ns for path in (tmp_path / "outcomes").iterdir()}
    again = evaluate.evaluate(config)
    assert again.success == summary.success
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outcomes").iterdir()} == store_time

    # A video that fails is said to have failed, and costs no results.
    video.unlink()
    video.parent.rmdir()
    video.parent.touch()
    spoilt = evaluate.evaluate(config)
    assert spoilt.videos == ()
    (warning,) = spoilt.warnings
    assert warning.startswith(f"no video of {video.stem}: cannot write ")
    assert json.loads((tmp_path / "summary.json").read_text())["success"]["ever"]["k"] == 2


def test_results_are_there_before_any_video(tmp_path, monkeypatch):
    """All episodes had been run, ffmpeg broke, and there was no summary.json."""

    def break_down(*_):
        raise RuntimeError("all simulators burn")

    config = EvalConfig(policy="scripted", out=tmp_path, tasks="0", init_states="20", videos=1, **SMALL)
    policy, _ = find_policy(config)
    (spec,) = evaluate.plan_episodes(config, policy)
    store.write_outcome(tmp_path, spec.key.name, outcome(0, "s0020", ever=True))
    monkeypatch.setattr(evaluate, "film", break_down)
    with pytest.raises(RuntimeError, match="burn"):
        evaluate.evaluate(config)
    assert json.loads((tmp_path / "summary.json").read_text())["success"]["ever"]["k"] == 1


def test_student_runs_through_the_same_loop_and_training_states_are_reported(ray_local, tmp_path, checkpoint):
    config = EvalConfig(
        policy=str(checkpoint), out=tmp_path, tasks="0", init_states="20-21", budget=12, videos=0, execute=3, **SMALL
    )
    summary = evaluate.evaluate(config)
    assert summary.success.ever.n == 2
    assert summary.steps_mean == 12
    assert summary.warnings == ("1 of 2 episodes start from init states that the student was trained on",)
    assert all(name.split("-")[3] == "student" for name in store.read_outcomes(tmp_path, Outcome))


def test_another_render_mode_than_in_training_is_reported(checkpoint):
    config = EvalConfig(policy=str(checkpoint), out=checkpoint, tasks="1", env=EnvConfig(render="exact"))
    policy, _ = find_policy(config)
    assert check_images(policy, images(config.env)) == [
        f"{policy.name} learnt from 'fast' images and gets 'exact' ones (--render)"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "no/such/dir"}, "neither a teacher \\(scripted, openvla, remote.*\\) nor a checkpoint; give"),
        ({"init_states": "40-60"}, "init state 60 of libero_object task 0 does not exist"),
        ({"tasks": ""}, "nothing to evaluate"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(EvalConfig(**{"policy": "scripted", "out": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()


def test_a_comparison_with_nothing_is_refused_before_hours_of_rollouts(tmp_path):
    config = EvalConfig(policy="scripted", out=tmp_path / "out", compare_to=tmp_path / "none", tasks="0")
    with pytest.raises(UserError, match="holds no evaluation"):
        evaluate.evaluate(config)
    assert np.size(list(tmp_path.iterdir())) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "3421aaf6"),
        ({"actuation": ActuationConfig(nudge_after=15)}, "eb0bd8b2"),
        ({"ensemble": 0.01, "execute": 1}, "eba41f5d"),
        ({"teacher_noise": TeacherNoiseConfig(flip_rate=0.03)}, "6b91a2ef"),
        ({"env": EnvConfig(render="exact"), "budget": 100}, "9aa24c79"),
        ({"policy": "scripted"}, "c7528062"),
    ],
)
def test_evaluations_are_called_as_before_settings_were_added(checkpoint, changes, expected):
    """With another name, all that was evaluated would be run again, and could not be compared."""
    config = EvalConfig(**{"policy": str(checkpoint), "out": checkpoint, "tasks": "0", "init_states": "20", **changes})
    policy, _ = find_policy(config)
    (spec,) = evaluate.plan_episodes(config, policy)
    assert spec.key.config_hash == expected


def test_a_setting_that_came_later_is_part_of_a_name_once_it_is_set():
    assert named_settings(ActuationConfig()) == {"gripper_dwell": 10, "gripper_memory": 10}
    assert named_settings(ActuationConfig(nudge_after=15))["nudge_after"] == 15
    assert named_settings(EvalConfig("x", Path()), "ensemble", "device", "teacher_noise", "budget") == {"budget": 0}
    config = EvalConfig("x", Path())
    of_study = named_settings(config, generation=STUDIES)
    assert {"ensemble", "teacher_noise"} <= of_study.keys() and not {"device", "precision"} & of_study.keys()
    assert config_hash(a=ActuationConfig()) == config_hash(a={"gripper_dwell": 10, "gripper_memory": 10})


def test_an_unknown_metric_is_named():
    """A suite that asks for one would else fail on its first finished episode, on an actor."""
    with pytest.raises(UserError, match="unknown metric 'grace'; choose one of gripper_flips, "):
        find_metrics(["grace"])
