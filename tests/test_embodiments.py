"""Robots that are not LIBERO's, and students and methods that are not ours: the way from data to a checkpoint."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.methods import METHODS
from vlaad_ray.models.student import STUDENTS, checkpoint
from vlaad_ray.train import prepare
from vlaad_ray.train.data import episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, fit, make_optimiser
from vlaad_ray.train.survey import survey
from vlaad_ray.types import Embodiment, Observation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
PLANAR = Embodiment(action_dim=2, proprio_dim=3, cameras=("top",), rate_hz=10, gripper=None)
BLIND_HAND = Embodiment(action_dim=4, proprio_dim=0, cameras=("top", "side"), rate_hz=10, gripper=0)


def write_dataset(root: Path, robot: Embodiment, count: int = 8, steps: int = 10, image_every: int = 1) -> Path:
    for index in range(count):
        like = synthetic.episode(index, steps)
        pictures = tuple(image if step % image_every == 0 else None for step, image in enumerate(like.images["wrist"]))
        actions, images = like.actions[:, : robot.action_dim], {camera: pictures for camera in robot.cameras}
        episode = dataclasses.replace(
            like,
            actions=actions,
            executed=actions,
            proprio=like.proprio[:, : robot.proprio_dim],
            images=images,
            embodiment=robot,
        )
        store.write_episode(root, episode, {"render": "fast"})
    return root


def trained(data: Path, out: Path, **settings: object) -> tuple[checkpoint.Pretrained, Progress]:
    """Train for two epochs without Ray, store the student, load it."""
    defaults = {"objective": "bc", "batch_size": 8, "epochs": 2, "precision": "fp32", "image_size": 32}
    config = prepare.complete(TrainConfig(data, out, **{**defaults, **settings}))
    preset, method = STUDENTS[config.student], METHODS[config.objective]
    facts = survey(config.data, config.annotations, 0.25, method)
    config, student_config, tokenizer = prepare.design(config, facts, out)
    texts, phases = ({name: i for i, name in enumerate(names)} for names in (facts.texts, facts.phases))
    parts = (episode_frames(source, texts, phases, student_config, method.columns) for source in facts.sources)
    frames = gather(parts, facts.frames(student_config.cameras))
    learner = prepare.make_learner(config, facts, student_config, preset, method)
    tokens = torch.from_numpy(tokenizer(facts.texts))
    progress = Progress()
    setup = Setup(learner, learner, make_optimiser(learner, config), frames, tokens, facts.phases, config, method)
    fit(setup, progress, lambda _: None)
    student = method.finish(learner)
    preset.finish(student)
    checkpoint.save_pretrained(out, student, tokenizer, {})
    return checkpoint.from_pretrained(out), progress


def answer(pretrained: checkpoint.Pretrained) -> torch.Tensor:
    config = pretrained.student.config
    images = torch.zeros(2, len(config.cameras), config.image_size, config.image_size, 3, dtype=torch.uint8)
    tokens = torch.from_numpy(pretrained.tokenizer(["pick up the red cup"] * 2))
    with torch.no_grad():
        return pretrained.student(images, torch.zeros(2, config.proprio_dim), tokens)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of tests/plugins; its entries are gone afterwards."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugins"))
    for door in (STUDENTS, METHODS):
        for name, entry in {**door}.items():
            monkeypatch.setitem(door, name, entry)

    def load(name: str) -> ModuleType:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield load
    for door in (STUDENTS, METHODS):
        door.pop("tiny", None), door.pop("progress", None)


def test_a_student_of_two_actions_one_camera_and_no_gripper_trains_and_loads(tmp_path):
    """Seven actions, eight numbers and a gripper at the end were written into networks, tallies and decoding."""
    pretrained, progress = trained(write_dataset(tmp_path / "data", PLANAR), tmp_path / "student")
    config = pretrained.student.config
    assert (config.cameras, config.action_dim, config.proprio_dim, config.gripper) == (("top",), 2, 3, None)
    assert len(progress.history[-1]["validation"]["near_by_dimension"]) == 2
    decoded = pretrained.student.decode(answer(pretrained))
    assert decoded.actions.shape == (2, 5, 2) and decoded.spread.shape == (2, 5, 2)
    assert decoded.closing is None
    assert (decoded.actions.abs() < 1).all(), "no number is snapped to an end, as a gripper's is"


def test_a_gripper_may_be_any_number_and_proprioception_none(tmp_path):
    pretrained, _ = trained(write_dataset(tmp_path / "data", BLIND_HAND), tmp_path / "student")
    assert not pretrained.student.config.proprio
    decoded = pretrained.student.decode(answer(pretrained))
    assert (decoded.actions[..., 0].abs() == 1).all() and (decoded.actions[..., 1:].abs() < 1).all()
    assert torch.equal(decoded.closing > 0.5, decoded.actions[..., 0] > 0)


def test_robots_are_not_mixed_and_cameras_are_those_of_the_data(tmp_path):
    """Episodes of two robots have columns of different widths: the first batch would fail with a numpy error."""
    data = write_dataset(tmp_path / "data", PLANAR)
    with pytest.raises(UserError, match=r"--cameras wrist: .* has top; choose of these"):
        trained(data, tmp_path / "student", cameras=("wrist",))
    store.write_episode(data, synthetic.episode(7, 4), {"render": "fast"})
    with pytest.raises(UserError, match=r"mixes robots: action_dim is \d in .*; keep the episodes of each") as raised:
        trained(data, tmp_path / "student")
    assert "\n" not in str(raised.value)


def test_memory_is_set_aside_for_frames_that_have_pictures(tmp_path):
    """With every second step rendered, twice as much as there is was asked for, and refused."""
    facts = survey(write_dataset(tmp_path, PLANAR, count=4, image_every=2), None, 0.25)
    assert (facts.steps, facts.frames(("top",))) == (40, 20)


def test_an_episode_file_is_opened_once_by_the_survey_and_once_for_its_pictures(tmp_path, monkeypatch):
    """It was five times, each some requests to an object store; and cameras were decoded that nobody looks through."""
    data, annotations = synthetic.write_dataset(tmp_path, 3, steps=4)
    opened, read = [], []
    real = store.parquet.pq.ParquetFile

    class Counting(real):
        def __init__(self, source, **options):
            opened.append(Path(source).parent.name)
            super().__init__(source, **options)

        def read(self, columns):
            read.extend(columns)
            return super().read(columns=columns)

    monkeypatch.setattr(store.parquet.pq, "ParquetFile", Counting)
    method = METHODS["both"]
    facts = survey(data, annotations, 0.0, method)
    assert sorted(opened) == ["annotations"] * 3 + ["episodes"] * 3
    assert not {"agentview", "wrist"} & set(read)
    opened.clear()
    texts, phases = ({name: i for i, name in enumerate(names)} for names in (facts.texts, facts.phases))
    config = STUDENTS["small"].network()[0](image_size=32, cameras=("wrist",))
    for _ in range(2):  # made, then from the cache
        frames = [episode_frames(each, texts, phases, config, method.columns, tmp_path) for each in facts.sources]
    assert sorted(opened) == ["annotations"] * 6 + ["episodes"] * 6
    assert "agentview" not in read and read.count("wrist") == 3
    assert np.array_equal(
        frames[0]["images"][:, 0], np.stack(store.read_episode(facts.sources[0].path).images["wrist"])
    )


def test_an_architecture_and_a_method_from_outside_train_together(tmp_path, plugin):
    """The examples of docs/extending.md, as they stand there."""
    plugin("tiny_student"), plugin("progress_method")
    data = write_dataset(tmp_path / "data", PLANAR)
    pretrained, progress = trained(data, tmp_path / "student", student="tiny", objective="progress", image_size=0)
    record = progress.history[-1]["validation"]
    assert record["loss_progress"] > 0 and record["loss"] > record["loss_image"]
    assert pretrained.student.decode(answer(pretrained)).actions.shape == (2, 5, 2)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["architecture"] == "tiny"
    policy = StudentPolicy.from_pretrained(tmp_path / "student")
    top = {"top": np.zeros((48, 48, 3), np.uint8)}
    answered = policy.infer(Observation("pick up the red cup", np.zeros(3, np.float32), top))
    assert answered.actions.shape == (5, 2) and answered.closing is None and answered.spread is None
    names = set(pretrained.student.state_dict())
    assert "head.weight" in names and not [name for name in names if name.startswith("student.")]


def test_an_architecture_from_outside_trains_with_a_description_too(tmp_path, plugin):
    plugin("tiny_student")
    data, annotations = synthetic.write_dataset(tmp_path, 4, steps=8)
    _, progress = trained(data, tmp_path / "student", student="tiny", objective="both", annotations=annotations)
    parts = progress.history[-1]["train"]
    assert min(parts[f"loss_{part}"] for part in ("full", "image", "phase", "direction")) > 0


def test_a_checkpoint_of_an_architecture_that_nobody_brought_is_one_clear_line(tmp_path, plugin):
    plugin("tiny_student")
    trained(write_dataset(tmp_path / "data", PLANAR), tmp_path / "student", student="tiny")
    del STUDENTS["tiny"]
    with pytest.raises(
        UserError, match=r"names the architecture 'tiny', .* knows clip, mini_vla,.* small; .*--plugin"
    ) as raised:
        checkpoint.from_pretrained(tmp_path / "student")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_of_before_there_was_a_choice_of_robot_are_liberos(tmp_path, version):
    """Their config.json says nothing of actions, proprioception and gripper; the first version nothing of small."""
    directory = synthetic.write_student(tmp_path / "student")
    before = checkpoint.from_pretrained(directory)
    path = directory / checkpoint.CONFIG
    stored = json.loads(path.read_text())
    for name in ("action_dim", "proprio_dim", "gripper"):
        del stored["student"][name]
    stored["schema_version"] = version
    if version == 1:
        del stored["architecture"]
    path.write_text(json.dumps(stored))
    after = checkpoint.from_pretrained(directory)
    assert after.student.config == before.student.config
    assert torch.equal(answer(after), answer(before))
