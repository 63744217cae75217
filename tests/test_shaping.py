"""What a robot is told must not depend on whether its student is evaluated or served."""

from pathlib import Path

import fakes
import numpy as np
import pytest
import synthetic
import torch
from websockets.sync.client import connect

from vlaad_ray.configs import ActuationConfig, EvalConfig, ServedStudentConfig, ServerConfig, UserError
from vlaad_ray.deploy.server import PolicyServer, served_student
from vlaad_ray.deploy.shaping import Shaped, shape
from vlaad_ray.evaluate.policies import find_policy
from vlaad_ray.models.student.checkpoint import from_pretrained, save_pretrained
from vlaad_ray.serving import protocol
from vlaad_ray.types import ActionChunk, LocalPolicy, Observation, Policy

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

RESTING = np.full(8, 0.25, np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, a little in favour of an open gripper: it rests open, and is never sure."""
    directory = synthetic.write_student(tmp_path_factory.mktemp("student") / "checkpoint")
    pretrained = from_pretrained(directory)
    config = pretrained.student.config
    with torch.no_grad():
        bias = pretrained.student.head[-1].bias.view(config.chunk, -1, config.bins)
        bias[:, 6, : config.bins // 2] += 0.2
    save_pretrained(directory, pretrained.student, pretrained.tokenizer, pretrained.training)
    return directory


def seen(number: int, instruction: str = "pick up the milk") -> Observation:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Observation(instruction, RESTING, {"agentview": pixels, "wrist": pixels[::-1]})


def evaluated_student(checkpoint: Path, execute: int, actuation: ActuationConfig, ensemble: float | None) -> Policy:
    """As jobs/eval.py has it in a simulator's process."""
    config = EvalConfig(str(checkpoint), Path(), execute=execute, actuation=actuation, ensemble=ensemble)
    policy, _ = find_policy(config)
    assert isinstance(policy, LocalPolicy)
    return policy.make(None)


@pytest.mark.parametrize("ensemble", [None, 0.01], ids=["alone", "ensemble"])
@pytest.mark.parametrize("actuation", [ActuationConfig(), ActuationConfig(0, 0, 1)], ids=["default", "nudged"])
def test_a_served_student_does_what_was_evaluated_to_the_last_bit(checkpoint, ensemble, actuation, monkeypatch):
    """The server had a composition of its own, without an ensemble: a robot did otherwise than the figures said."""
    monkeypatch.setattr("vlaad_ray.deploy.actuation.ABOUT_TO_CLOSE", 1.0)  # random weights are never sure
    evaluated = evaluated_student(checkpoint, 2, actuation, ensemble)
    student = ServedStudentConfig(checkpoint, execute=2)
    config = ServerConfig(port=0, ensemble=ensemble, actuation=actuation)
    told = []
    with (
        PolicyServer(served_student(student, "cpu"), {}, config, student.execute) as server,
        connect(server.url, compression=None, proxy=None) as client,
    ):
        client.recv(20)
        for instruction in ("pick up the milk", "pick up the soup"):  # a new task begins afresh in both
            evaluated.reset(instruction)
            for number in range(12):
                observation = seen(number, instruction)
                client.send(protocol.pack(protocol.pack_observation(observation)))
                served = protocol.unpack(client.recv(20))["actions"]
                told.append(evaluated.infer(observation).actions)
                assert np.array_equal(served, told[-1])
    said = [chunk.actions for chunk in served_student(student, "cpu").infer_batch([seen(n) for n in range(12)])]
    assert any(np.abs(shaped - alone[:2]).max() > 1e-3 for shaped, alone in zip(told, said, strict=False)), (
        "shaping must have had something to do"
    )


def test_two_clients_overlapping_chunks_are_not_averaged_with_each_other(checkpoint):
    """One ensemble for all clients would mix what two robots see."""
    student = ServedStudentConfig(checkpoint, execute=1)
    config = ServerConfig(port=0, ensemble=0.0, actuation=ActuationConfig(0, 0, 0))
    robots = [evaluated_student(checkpoint, 1, config.actuation, 0.0) for _ in range(2)]
    with (
        PolicyServer(served_student(student, "cpu"), {}, config, student.execute) as server,
        connect(server.url, compression=None, proxy=None) as one,
        connect(server.url, compression=None, proxy=None) as other,
    ):
        for client in (one, other):
            client.recv(20)
        for number in range(6):
            for client, robot, sees in ((one, robots[0], number), (other, robots[1], 100 + number)):
                client.send(protocol.pack(protocol.pack_observation(seen(sees))))
                served = protocol.unpack(client.recv(20))["actions"]
                assert np.array_equal(served, robot.infer(seen(sees)).actions)


def test_an_ensemble_over_chunks_that_never_overlap_is_refused(checkpoint):
    """All K actions handed out, nothing would ever be averaged, and nobody told."""
    student = ServedStudentConfig(checkpoint)
    with pytest.raises(UserError, match="--ensemble averages chunks that overlap: give --execute 1"):
        PolicyServer(served_student(student, "cpu"), {}, ServerConfig(port=0, ensemble=0.01))
    with pytest.raises(UserError, match="choose 1 to 5"):
        served_student(ServedStudentConfig(checkpoint, execute=6), "cpu")


def test_a_robot_without_gripper_is_told_what_the_student_says():
    """Its last number is no command: turned to -1 or +1, it would move something else with full force."""
    chunks = [[[0.1, -0.2], [0.3, 0.4], [0.5, 0.6]], [[0.5, 0.2], [0.1, 0.0], [0.0, 0.0]]]

    def ask(ensemble: float | None) -> list[np.ndarray]:
        policy = Shaped(fakes.ScriptedLine(*chunks), shape(2, ensemble, ActuationConfig(), gripper=None))
        policy.reset("reach")
        answers: list[ActionChunk] = [policy.infer(Observation("reach", np.zeros(2, np.float32))) for _ in range(2)]
        return [answer.actions for answer in answers]

    np.testing.assert_array_equal(ask(None), np.array([chunks[0][:2], chunks[1][:2]], np.float32))
    np.testing.assert_allclose(ask(0.0), [chunks[0][:2], [[0.5, 0.4], [0.1, 0.0]]], rtol=1e-6)


def test_a_gripper_among_the_first_numbers_keeps_its_command():
    """Numbers 0 to 2 were taken for translations, and put back as the student said them, the command with them."""
    said = ActionChunk(np.array([[0.1, 0.2, -1], [0.1, 0.2, 1]], np.float32))
    shaping = shape(None, None, ActuationConfig(gripper_dwell=10), gripper=2)
    told = shaping.apply(Observation("reach", np.zeros(2, np.float32)), said).actions
    np.testing.assert_array_equal(told, np.array([[0.1, 0.2, -1], [0.1, 0.2, -1]], np.float32))
    with pytest.raises(UserError, match="--nudge-after reads the proprioception of LIBERO's arm"):
        shape(None, None, ActuationConfig(nudge_after=15), gripper=2)
