"""Students in replicas for all simulators: they act as a copy in each does, and what cannot run is said at once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.configs import ActuationConfig, EnvConfig, EvalConfig, FleetConfig, ServingConfig, UserError
from vlaad_ray.deploy.acting import on_device
from vlaad_ray.evaluate.policies import find_policy
from vlaad_ray.evaluate.stage import evaluate
from vlaad_ray.models.student.checkpoint import from_pretrained, save_pretrained
from vlaad_ray.rollout.replicas import pack, placed, unpack
from vlaad_ray.types import ActionChunk, LocalPolicy, Observation, Outcome, SharedPolicy

SHARED = ServingConfig(replicas=1, cpus_per_replica=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose gripper rests open, unsure: actuation and ensemble have something to remember."""
    directory = synthetic.write_student(tmp_path_factory.mktemp("student") / "checkpoint")
    pretrained = from_pretrained(directory)
    config = pretrained.student.config
    with torch.no_grad():
        bias = pretrained.student.head[-1].bias.view(config.chunk, -1, config.bins)
        bias[:, 6, : config.bins // 2] += 0.2
    save_pretrained(directory, pretrained.student, pretrained.tokenizer, pretrained.training)
    return directory


def seen(number: int) -> Observation:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Observation("pick up the milk", np.full(8, 0.25, np.float32), {"agentview": pixels, "wrist": pixels[::-1]})


def test_an_answer_travels_whole():
    """Without closing and spread, a shared student's gripper and nudges would not be those of a local one."""
    chunk = ActionChunk(np.ones((2, 3), np.float32), "grasping", np.float32([0.25, 0.75]), np.ones((2, 3), np.float32))
    for sent in (chunk, ActionChunk(chunk.actions)):
        came = unpack(pack(sent))
        assert came.phase == sent.phase
        for name in ("actions", "closing", "spread"):
            np.testing.assert_equal(getattr(came, name), getattr(sent, name))


@pytest.mark.parametrize("ensemble", [None, 0.01], ids=["alone", "ensemble"])
def test_a_shared_student_acts_as_a_local_one_and_each_environment_has_its_own_state(ray_local, checkpoint, ensemble):
    actuation = ActuationConfig(gripper_dwell=3, nudge_after=4)
    config = EvalConfig(str(checkpoint), Path(), ensemble=ensemble, actuation=actuation)
    local, _ = find_policy(config)
    shared, _ = find_policy(dataclasses.replace(config, serving=SHARED))
    assert isinstance(local, LocalPolicy) and isinstance(shared, SharedPolicy)
    assert (shared.name, shared.settings) == (local.name, local.settings), "the same evaluation, to be resumed"
    with placed(shared, SHARED) as make:
        clients, own = [make(None), make(None)], [local.make(None), local.make(None)]
        for policy in (*clients, *own):
            policy.reset("pick up the milk")
        for number in range(10):
            for which in (0, 1):  # each sees other pictures
                came = clients[which].infer(seen(100 * which + number)).actions
                # One after the other, but with as many threads as the replica has: sums in another order.
                np.testing.assert_allclose(came, own[which].infer(seen(100 * which + number)).actions, atol=1e-5)


def test_outcomes_through_a_replica_are_those_of_local_copies(ray_local, checkpoint, tmp_path):
    config = EvalConfig(
        str(checkpoint),
        tmp_path / "local",
        tasks="0",
        init_states="20-22",
        budget=12,
        videos=0,
        env=EnvConfig(image_size=64),
        fleet=FleetConfig(actors=2),
    )
    evaluate(dataclasses.replace(config, fleet=FleetConfig(actors=1)))
    evaluate(dataclasses.replace(config, out=tmp_path / "shared", serving=SHARED))
    local, shared = (store.read_outcomes(tmp_path / name, Outcome) for name in ("local", "shared"))
    assert len(local) == 3
    assert shared == local


def test_a_gpu_that_is_not_there_is_said_at_once(checkpoint, tmp_path, monkeypatch):
    """A run would start Ray and wait for a GPU that never comes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = EvalConfig(str(checkpoint), tmp_path / "out", device="cuda")
    with pytest.raises(UserError, match="--device cuda: torch finds no GPU on this machine"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_on_a_gpu_a_student_is_shared_and_its_evaluation_has_another_name(checkpoint, monkeypatch):
    """A copy in each simulator's process would need as many times its memory; its convolutions round otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = EvalConfig(str(checkpoint), Path())
    here, _ = find_policy(config)
    there, _ = find_policy(dataclasses.replace(config, device="cuda"))
    assert isinstance(there, SharedPolicy)
    assert there.settings == {**here.settings, "device": "cuda"}
    assert on_device(config.serving, "cuda").gpus_per_replica == 1
    assert on_device(ServingConfig(gpus_per_replica=0.5), "cuda").gpus_per_replica == 0.5
    assert on_device(config.serving, "cpu") == config.serving
    with pytest.raises(UserError, match="add --device cuda"):
        find_policy(dataclasses.replace(config, serving=ServingConfig(gpus_per_replica=0.5)))
    with pytest.raises(UserError, match="scripted computes nothing"):
        find_policy(dataclasses.replace(config, policy="scripted", device="cuda"))


def test_a_precision_that_nobody_would_use_is_refused(checkpoint):
    bf16, _ = find_policy(EvalConfig(str(checkpoint), Path(), precision="bf16"))
    assert bf16.settings["precision"] == "bf16"
    with pytest.raises(UserError, match="--precision bf16 is a student's"):
        find_policy(EvalConfig("scripted", Path(), precision="bf16"))


def test_more_actions_than_a_student_answers_with_are_refused_before_replicas_start(checkpoint):
    with pytest.raises(UserError, match="choose 1 to 5"):
        find_policy(EvalConfig(str(checkpoint), Path(), execute=6, serving=SHARED))
