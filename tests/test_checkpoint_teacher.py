"""A trained student that teaches: it collects under its own name, and what it does not fit is refused."""

import dataclasses

import pytest
import torch
from plugins import reach

from vlaad_ray import store
from vlaad_ray.collect import collect
from vlaad_ray.configs import CheckpointConfig, CollectConfig, FleetConfig, UserError
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.teachers import find_teacher

POINT = SmallConfig(
    image_size=32, width=8, feature_width=16, hidden=16, text_width=16, text_length=12, cameras=reach.POINT.cameras,
    chunk=3, action_dim=2, proprio_dim=4, gripper=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Of the point robot, with random weights."""
    directory = tmp_path_factory.mktemp("student")
    tokenizer = train_tokenizer(reach.TASKS, POINT.text_length)
    torch.manual_seed(0)
    network = SmallStudent(dataclasses.replace(POINT, vocabulary=tokenizer.vocabulary))
    checkpoint.save_pretrained(directory, network, tokenizer, {"objective": "bc"})
    return directory


def test_a_student_teaches_under_the_name_of_its_weights(ray_local, student, tmp_path):
    """Two checkpoints under one name would share a dataset, and nobody could tell who taught."""
    config = CollectConfig(
        out=tmp_path,
        suite="reach",
        tasks="0",
        init_states="0-1",
        budget=4,
        teacher="checkpoint",
        teacher_config=CheckpointConfig(student),
        env=reach.ReachConfig(),
        keep_failed=True,
        fleet=FleetConfig(actors=1),
    )
    summary = collect(config)
    assert summary.episodes.planned == 2
    first, _ = store.list_episodes(tmp_path)
    name = checkpoint.checkpoint_name(student)
    assert name in first.stem
    episode = store.read_episode(first)
    alone = find_teacher("checkpoint", CheckpointConfig(student), "reach", 0).make(None)
    seen = reach.ReachEnv(0, reach.ReachConfig())
    seen.reset(episode.key.init, 0)
    alone.reset(seen.instruction)
    actions = alone.infer(seen.observe(images=True)).actions
    assert actions.shape == (2, 2), "two of three actions are executed"
    torch.testing.assert_close(torch.from_numpy(episode.actions[:2]), torch.from_numpy(actions))


def test_what_it_does_not_fit_is_refused(student, tmp_path):
    for config, suite, told in (
        (CheckpointConfig(), "reach", "needs --checkpoint"),
        (CheckpointConfig(tmp_path / "none"), "reach", "is not there"),
        (CheckpointConfig(tmp_path), "reach", "config.json"),
        (CheckpointConfig(student), "libero_goal", "another robot"),
    ):
        with pytest.raises(UserError, match=told):
            find_teacher("checkpoint", config, suite, 0)
    with pytest.raises(UserError, match="answers with 3 actions"):
        find_teacher("checkpoint", CheckpointConfig(student), "reach", 4)


def test_how_it_acts_is_in_its_episodes_hash(student):
    """Else a rerun with other settings would find the episodes that are there, and keep them."""
    plain, as_it_says = (
        find_teacher("checkpoint", CheckpointConfig(student, steady=steady), "reach", 0) for steady in (True, False)
    )
    assert plain.settings != as_it_says.settings
    shared = find_teacher("checkpoint", CheckpointConfig(student, shared=True), "reach", 0)
    assert shared.settings == plain.settings
    assert shared.load("cpu").infer_batch([]) == []
