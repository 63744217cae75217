"""A teacher behind openpi's protocol: our client, our server, and connections between them that come and go."""

import contextlib
import socket
import threading

import fakes
import numpy as np
import pytest
from policy_servers import HELLO, METADATA, actions, client, seen, serving, serving_bytes
from websockets.sync.client import connect

from vlaad_ray.configs import (
    ActuationConfig,
    EnvConfig,
    EvalConfig,
    FleetConfig,
    RemoteConfig,
    ServerConfig,
    UserError,
)
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.deploy.server import PolicyServer
from vlaad_ray.evaluate import stage as evaluate
from vlaad_ray.models.student.checkpoint import save_pretrained
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.rollout.dagger import Guided
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.serving import protocol
from vlaad_ray.teachers import find_teacher
from vlaad_ray.types import ActionChunk


def drive(observation):
    """Ten actions towards the goal of LineEnv, faster from further away: a wrong observation would show."""
    return ActionChunk(np.full((10, 7), 1 - observation.proprio[0], np.float32))


class Served:
    """A policy of one function."""

    needs_images = True
    cameras = ()

    def __init__(self, infer=drive):
        self.infer = infer

    def infer_batch(self, observations):
        return [self.infer(observation) for observation in observations]


def server_of(infer=drive, metadata=METADATA, **config):
    return PolicyServer(
        Served(infer), metadata, ServerConfig(**{"port": 0, "actuation": ActuationConfig(0, 0, 0), **config})
    )


class Local:
    """`drive` without a network."""

    needs_images = True

    def reset(self, instruction):
        pass

    def infer(self, observation):
        return ActionChunk(drive(observation).actions[:5])


def test_an_episode_over_the_network_is_the_same_as_without():
    here = run_episode(fakes.LineEnv(), Local(), EpisodeSpec(fakes.key()))
    with server_of() as server:
        there = run_episode(fakes.LineEnv(), client(server), EpisodeSpec(fakes.key()))
    assert there.success_ever
    np.testing.assert_array_equal(there.actions, here.actions)


def test_a_served_teacher_is_recorded_while_a_student_acts():
    student = fakes.ScriptedLine([[0.2, 0, 0, 0, 0, 0, -1]] * 2)
    with server_of() as server:
        both = Guided(client(server), student, mix=1.0, latest=1, rest_steps=0)
        made = run_episode(fakes.LineEnv(), both, EpisodeSpec(fakes.key(), budget=6))
    taught = run_episode(fakes.LineEnv(), Local(), EpisodeSpec(fakes.key()))
    np.testing.assert_allclose(made.executed[:, 0], 0.2)
    np.testing.assert_allclose(made.actions[0], taught.actions[0], err_msg="what the teacher says at the start")
    assert (made.actions[:, 0] != made.executed[:, 0]).any()


def test_the_served_policy_sees_upright_images_of_224_pixels_and_the_instruction():
    asked = []
    with server_of(lambda observation: asked.append(observation) or drive(observation)) as server:
        client(server).infer(seen(224))
        client(server).infer(seen(64))
    np.testing.assert_array_equal(asked[0].images["wrist"], seen(224).images["wrist"])
    assert asked[0].instruction == "go"
    assert asked[1].images["agentview"].shape == (224, 224, 3)


def test_a_server_that_restarts_in_mid_episode_costs_nothing():
    """The client finds its connection closed, looks for the server in vain, finds the new one and asks again."""
    with contextlib.ExitStack() as running:
        server = running.enter_context(server_of())
        teacher = client(server)
        infer, asked = teacher.infer, []

        def start_again_once_it_is_looked_for(placeholder):
            with placeholder:
                placeholder.accept()[0].close()
            running.enter_context(server_of(port=server.port))

        def infer_after_restart(observation):
            asked.append(observation)
            if len(asked) == 2:
                running.close()
                placeholder = socket.create_server((server.host, server.port))
                restart = threading.Thread(target=start_again_once_it_is_looked_for, args=(placeholder,))
                restart.start()
                chunk = infer(observation)
                restart.join()
                return chunk
            return infer(observation)

        teacher.infer = infer_after_restart
        episode = run_episode(fakes.LineEnv(), teacher, EpisodeSpec(fakes.key()))
    undisturbed = run_episode(fakes.LineEnv(), Local(), EpisodeSpec(fakes.key()))
    assert len(asked) > 2
    np.testing.assert_array_equal(episode.actions, undisturbed.actions)


def test_no_answer_in_time_is_an_error_that_names_the_server():
    answer = threading.Event()
    with server_of(lambda observation: answer.wait() and drive(observation)) as server:
        teacher = client(server, infer_timeout_s=0.2)
        with pytest.raises(UserError, match=rf"{server.url} did not answer within 0.2 s"):
            teacher.infer(seen())
        answer.set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ws://127.0.0.1:9", r"no policy server at ws://127.0.0.1:9 within 0.2 s"),
        ("http://127.0.0.1:9", "'http://127.0.0.1:9' is not a websocket address"),
        ("127.0.0.1:9", "is not a websocket address"),
    ],
)
def test_a_server_that_is_not_there_is_an_error_that_names_it(url, message):
    with pytest.raises(UserError, match=message):
        client(url, connect_timeout_s=0.2)


def test_a_server_of_something_else_is_recognised():
    with serving_bytes(first="hello") as url, pytest.raises(UserError, match="does not speak openpi's protocol"):
        client(url)


def test_each_episode_has_a_connection_of_its_own():
    """A server that remembers (a gripper's dwell) would carry the end of one episode into the next."""
    requests = []

    def handle(connection):
        requests.append(0)
        connection.send(HELLO)
        for _ in connection:
            requests[-1] += 1
            connection.send(actions(np.zeros((5, 7))))

    with serving(handle) as url:
        teacher = client(url)
        for _ in range(2):
            teacher.reset("go")
            teacher.infer(seen())
            teacher.infer(seen())
    assert requests == [2, 2]


def test_a_server_with_a_token_wants_it(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "other").write_text("0123456789abcdeF\n")
    with server_of(token_file=tmp_path / "token") as server:
        assert client(server, token_file=tmp_path / "token").infer(seen()).actions.shape == (5, 7)
        for other in (tmp_path / "other", None):
            with pytest.raises(UserError, match="wants another token"):
                client(server, token_file=other)
    with pytest.raises(UserError, match=r"--token-file: .*missing does not exist"):
        client(server, token_file=tmp_path / "missing")


def test_bad_requests_are_refused_with_a_reason_and_others_are_served_on():
    with server_of() as server:
        good = client(server)
        for message in (
            b"\xc1",
            "text",
            protocol.pack({}),
            protocol.pack({"prompt": "go", "observation/state": np.zeros(3)}),
        ):
            with connect(server.url, compression=None, proxy=None) as bad:
                assert protocol.unpack(bad.recv()) == METADATA
                bad.send(message)
                assert isinstance(bad.recv(timeout=20), str)
            assert good.infer(seen()).actions.shape == (5, 7)


def test_the_name_tells_policies_apart_or_has_to_be_given():
    """Episodes of two checkpoints under one name would be taken for the same and never collected."""
    with server_of() as one, server_of(metadata={**METADATA, "policy": "other"}) as other:
        names = [find_teacher("remote", RemoteConfig(url=each.url), "libero_object", 0).name for each in (one, other)]
    assert len(set(names)) == 2
    with server_of(metadata={}) as server:
        with pytest.raises(UserError, match="name it, say --label"):
            find_teacher("remote", RemoteConfig(url=server.url), "libero_object", 0)
        with pytest.raises(UserError, match="goes into file names"):
            find_teacher("remote", RemoteConfig(url=server.url, label="a/b"), "libero_object", 0)
        named = find_teacher("remote", RemoteConfig(url=server.url, label="pi05"), "libero_object", 0)
    assert named.name.startswith("pi05-")
    assert (named.trained.render, named.trained.image_size) == ("exact", 256)


def test_real_libero_with_a_served_student_and_images_unlike_its_own_are_reported(ray_local, tmp_path):
    tokenizer = train_tokenizer(("pick up the milk",), 16)
    student = SmallStudent(
        SmallConfig(image_size=32, width=8, hidden=32, vocabulary=tokenizer.vocabulary, text_length=16)
    )
    save_pretrained(tmp_path / "student", student, tokenizer, {"render": "exact"})
    policy = StudentPolicy.from_pretrained(tmp_path / "student")
    with PolicyServer(policy, {"policy": "student-test", "render": "exact", "image_size": 0}) as server:
        config = EvalConfig(
            policy="remote",
            out=tmp_path / "out",
            tasks="0",
            init_states="20",
            budget=12,
            videos=0,
            teacher_config=RemoteConfig(url=server.url),
            env=EnvConfig(image_size=32),
            fleet=FleetConfig(actors=1),
        )
        summary = evaluate.evaluate(config)
    assert summary.steps_mean == 12
    assert summary.execute == 5
    (warning,) = summary.warnings
    assert "learnt from 'exact' images and gets 'fast' ones" in warning
