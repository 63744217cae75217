"""Sweeps: what the flags mean, what counts as best, and one on real Ray Tune that is killed and started again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import ray
import synthetic
import tyro

from vlaad_ray.configs import NoSettings, SpaceConfig, SweepConfig, TrainConfig, TuningConfig, UserError
from vlaad_ray.experiments.sweep import sweep
from vlaad_ray.experiments.sweep.plot import scaled
from vlaad_ray.experiments.sweep.results import Trial, best, ordered, pareto_front
from vlaad_ray.experiments.sweep.space import Axis, domains, parse_axis, read_axes
from vlaad_ray.experiments.sweep.stage import Asha, check_tuning_split, searcher
from vlaad_ray.experiments.sweep.trial import trial_config, trial_name, tuning_config
from vlaad_ray.methods.vlaad.config import DualPathConfig
from vlaad_ray.models.student.small import SmallConfig
from vlaad_ray.runtime import doors
from vlaad_ray.runtime.record import with_config_file
from vlaad_ray.store import cached_arrays
from vlaad_ray.train.data import episode_frames
from vlaad_ray.train.survey import survey


def config(out: Path = Path("out"), data: Path = Path("data"), **changes: object) -> SweepConfig:
    return dataclasses.replace(SweepConfig(train=TrainConfig(data=data, out=out)), **changes)


def test_choices_and_intervals_are_told_apart():
    assert parse_axis("alpha", "0.3,0.5,0.5") == Axis("alpha", choices=(0.3, 0.5))
    assert parse_axis("lr", "3e-4..3e-3") == Axis("lr", interval=(3e-4, 3e-3))
    assert parse_axis("phases", "3,13").choices == (3, 13)
    assert all(isinstance(number, int) for number in parse_axis("chunk", "2,5").choices), (
        "a chunk of 5.0 has no meaning"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("alpha", "much", "neither choices"),
        ("alpha", "1..0", "from less to more"),
        ("lr", "0..1", "logarithmic"),
        ("chunk", "1..8", "whole numbers"),
        ("chunk", "2.5", "whole numbers"),
        ("alpha", "nan", "not finite"),
    ],
)
def test_an_axis_that_means_nothing_is_refused(name, text, message):
    with pytest.raises(UserError, match=message):
        parse_axis(name, text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": SpaceConfig(alpha="", lr="")}, "nothing varies"),
        ({"search": "grid"}, "a grid needs choices"),
        ({"space": SpaceConfig(phases="3,4")}, "no taxonomy of 4"),
        ({"space": SpaceConfig(lora_rank="4,8")}, "changes nothing with --student small"),
        ({"space": SpaceConfig(chunk="0,5")}, "--space.chunk must be 1 or more, not 0"),
        ({"space": SpaceConfig(alpha="-1..1")}, "--space.alpha must be 0 or more, not -1"),
        ({"train": TrainConfig(data=Path("d"), out=Path("o"), objective="bc")}, "changes nothing with --objective bc"),
        (
            {
                "space": SpaceConfig(phases="3,9"),
                "train": TrainConfig(data=Path("d"), out=Path("o"), annotations=Path("n")),
            },
            "--annotations has one taxonomy",
        ),
    ],
)
def test_a_space_that_would_search_nothing_is_refused(changes, message):
    """Trials that cannot differ would fill the table with the noise of nothing."""
    with pytest.raises(UserError, match=message):
        read_axes(config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": "success", "search": "bayesian"}, "--no-early-stopping"),
        ({"train": TrainConfig(data=Path("d"), out=Path("o"), max_minutes=1.0)}, "epoch by epoch"),
        ({"train": TrainConfig(data=Path("d"), out=Path("o"), validation_fraction=0.0)}, "held-out"),
        ({"wandb": "project"}, "wandb is not installed here: pip install wandb"),
    ],
)
def test_settings_that_do_not_go_together_are_said_before_ray_starts(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sweep(config(**changes))


def test_two_trials_never_share_a_directory_and_the_same_settings_always_do():
    """Names are cut to three digits: without the hash, a fine search would take one run for another's."""
    assert trial_name({"lr": 0.00123401}) != trial_name({"lr": 0.00123402})
    assert trial_name({"lr": 0.00123401}) == trial_name({"lr": 0.00123401})
    trained = trial_config(config(), {3: Path("/three"), 9: Path("/nine")}, {"phases": 3, "lr": 0.01, "alpha": 0.3})
    assert (trained.annotations, trained.lr, trained.method) == (Path("/three"), 0.01, DualPathConfig(0.3))
    assert trial_config(config(), {9: Path("/nine")}, {"lr": 0.01}).annotations == Path("/nine")


def test_tuning_never_touches_the_test_states_nor_what_was_trained_on(tmp_path):
    closed_loop = tuning_config(config(), TrainConfig(data=Path("d"), out=Path("o")))
    assert (closed_loop.init_states, closed_loop.placements, closed_loop.seed) == ("", 2, 1000)
    data, _ = synthetic.write_dataset(tmp_path, 1, placement=True)
    with pytest.raises(UserError, match="placements of seed 0"):
        check_tuning_split(config(data=data, goal="success", tuning=TuningConfig(seed=0)))
    check_tuning_split(config(data=data, goal="success"))


def trial(name: str, near: float, rate: float | None = None, state: str = "finished", epochs: int = 4) -> Trial:
    return Trial(name, {"lr": near}, state, epochs, near, near / 2, {"rate": rate} if rate is not None else None)


def test_the_best_is_a_finished_trial_by_what_counts():
    """A trial that was stopped early may show a higher accuracy than all: it has no checkpoint to deploy."""
    trials = [trial("a", 0.7, 0.5), trial("b", 0.6, 0.9), trial("stopped", 0.8, state="stopped early", epochs=2)]
    assert best(trials, "accuracy").name == "a"
    assert best(trials, "success").name == "b"
    assert [each.name for each in ordered(trials, "accuracy")] == ["a", "b", "stopped"]
    assert best([trials[-1]], "accuracy") is None


def test_pareto_front_by_hand():
    trials = [
        trial("a", 0.7, 0.5),
        trial("b", 0.6, 0.9),
        trial("c", 0.6, 0.5),
        trial("d", 0.5, 0.9),
        trial("e", 0.7, 0.5),
    ]
    assert [each.name for each in pareto_front(trials)] == ["b", "a", "e"], "c and d lose to others, a and e are equal"


def test_axes_of_the_plot_run_from_least_to_greatest():
    assert scaled([1.0, None, 3.0, 2.0], logarithmic=False) == [0.0, None, 1.0, 0.5]
    assert scaled([1e-4, 1e-3, 1e-2], logarithmic=True) == pytest.approx([0, 0.5, 1])
    assert scaled([5.0, 5.0], logarithmic=False) == [0.5, 0.5]


def test_early_stopping_lets_a_trained_trial_wind_up():
    """A rung at the last epoch would stop trials before their checkpoint is written."""
    scheduler = Asha(4, time_attr="epoch", metric="x", mode="max", grace_period=1, reduction_factor=2, max_t=5)
    fake = type("Trial", (), {"trial_id": "1", "stub": False})
    one, two = fake(), fake()
    two.trial_id = "2"
    for each in (one, two):
        scheduler.on_trial_add(None, each)
    assert scheduler.on_trial_result(None, one, {"epoch": 1, "x": 0.9, "training_iteration": 1}) == "CONTINUE"
    assert scheduler.on_trial_result(None, two, {"epoch": 1, "x": 0.1, "training_iteration": 1}) == "STOP"
    assert scheduler.on_trial_result(None, one, {"epoch": 4, "x": 0.0, "training_iteration": 4}) == "CONTINUE"


@pytest.mark.parametrize("goal", ["accuracy", "success", "both"])
def test_bayesian_search_learns_from_what_trials_report(goal):
    """Ray's adapter swallows what it cannot tell Optuna, and the search would go on blindly."""
    axes = read_axes(config(space=SpaceConfig(alpha="0.3,1", phases="3,9")))
    storage = optuna.storages.InMemoryStorage()
    search = searcher(config(search="bayesian", goal=goal, concurrent=1), storage)
    search.set_search_properties(None, None, domains(axes, "bayesian"))
    for number in range(4):
        proposed = search.suggest(str(number))
        assert proposed["phases"] in (3, 9) and 3e-4 <= proposed["lr"] <= 3e-3
        search.on_trial_result(str(number), {"epoch": 1, "training_iteration": 1, "validation/near": 0.1})
        search.on_trial_complete(str(number), {"validation/near": 0.1 * number, "success/rate": 0.5})
    (name,) = optuna.get_all_study_names(storage)
    states = [each.state.name for each in optuna.load_study(study_name=name, storage=storage).trials]
    assert states == ["COMPLETE"] * 4


def parsed(args: list[str]) -> TrainConfig:
    return doors.plain(tyro.cli(doors.with_settings(TrainConfig, args), args=args))


def test_config_file_stands_for_flags_and_flags_win(tmp_path):
    path = tmp_path / "best.json"
    settings = {
        "data": "D",
        "annotations": None,
        "alpha": 0.5,
        "proprio": False,
        "max_minutes": None,
        "objective": "dual_path",
        "phase_weight": 0.3,
        "backbone": "",
        "lora_rank": 8,
    }
    path.write_text(json.dumps({"stage": "TrainConfig", "config": settings}))
    args = with_config_file(["--config", str(path), "--alpha", "0.8", "--out", "O"], TrainConfig)
    expected = TrainConfig(
        data=Path("D"), out=Path("O"), method=DualPathConfig(0.8), network=NoSettings(), proprio=False
    )
    assert parsed(args) == expected
    settings = json.loads(json.dumps(dataclasses.asdict(expected), default=str))
    path.write_text(json.dumps({"stage": "TrainConfig", "config": settings}))
    assert parsed(with_config_file(["--config", str(path)], TrainConfig)) == expected, "as runs write it now"
    path.write_text(json.dumps({"stage": "EvalConfig", "config": {}}))
    with pytest.raises(UserError, match="not a TrainConfig"):
        with_config_file(["--config", str(path)], TrainConfig)


def test_cached_pictures_are_the_decoded_ones_of_this_episode_and_size(tmp_path):
    """A cache by name alone would serve pictures of another size, or of an episode that was collected anew."""
    data, _ = synthetic.write_dataset(tmp_path, 2, steps=4)
    facts = survey(data, None, 0.0)
    texts, labels = {text: i for i, text in enumerate(facts.texts)}, {label: i for i, label in enumerate(facts.phases)}
    for size in (32, 48):
        student = SmallConfig(image_size=size, chunk=1)
        for source in facts.sources:
            plain = episode_frames(source, texts, labels, student)
            for _ in range(2):  # made, then read
                cached = episode_frames(source, texts, labels, student, cache=tmp_path / "frames")
                assert all(np.array_equal(plain[name], cached[name]) for name in plain)
    files = sorted((tmp_path / "frames").iterdir())
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:-200])
    with pytest.raises(UserError, match="delete it"):
        cached_arrays(files[0], dict)


@pytest.mark.slow
def test_a_killed_sweep_continues_and_repeats_no_finished_trial(ray_local, tmp_path):
    """SIGKILL on the driver after the first trial; then the same command. Later trials share the frames it decoded."""
    data, _ = synthetic.write_dataset(tmp_path, 6, steps=16)
    out = tmp_path / "sweep"
    command = [sys.executable, "jobs/sweep.py", "--data", str(data), "--out", str(out), "--search", "grid"]
    command += ["--space.alpha", "", "--space.phases", "3,5,9", "--space.lr", "", "--concurrent", "1"]
    command += ["--epochs", "2", "--grace-epochs", "1", "--reduction", "2", "--batch-size", "16", "--chunk", "1"]
    command += ["--image-size", "32", "--precision", "fp32", "--validation-fraction", "0.34"]
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_ADDRESS": address}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while job.poll() is None and time.monotonic() < deadline and not any(out.glob("trials/*/summary.json")):
        time.sleep(0.05)  # waits for the first finished trial, not for a time
    job.kill()
    assert job.wait() == -signal.SIGKILL, "killed before it ended"
    assert not (out / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/summary.json")}
    before |= {path: path.stat().st_mtime_ns for path in out.glob("frames/*.npz")}

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    summary = json.loads((out / "summary.json").read_text())
    assert sorted(trial["settings"]["phases"] for trial in summary["trials"]) == [3, 5, 9]
    assert summary["counts"]["failed"] == 0
    assert (out / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "trials.md").read_text().splitlines()) == 2 + 3
    assert len(list(out.glob("frames/*.npz"))) == 6
    assert any((out / "tune").rglob("events.out.tfevents*")), "TensorBoard"

    args = with_config_file(["--config", str(out / "best.json"), "--out", "AGAIN"], TrainConfig)
    found = parsed(args)
    assert found.annotations == out / "annotations" / str(summary["best"]["settings"]["phases"])
    assert (found.epochs, found.batch_size, found.workers) == (2, 16, 0)
    assert summary["best"]["state"] == "finished"
