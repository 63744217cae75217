"""openpi-client 0.1.2, as it comes from its package, drives a student of ours on real LIBERO.

scripts/setup.sh installs it. Nothing in here is our own client.
"""

import numpy as np
import pytest
import synthetic
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus

from vlaad_ray.configs import ActuationConfig, EnvConfig, ServerConfig
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.deploy.server import PolicyServer
from vlaad_ray.deploy.shaping import Shaped, shape
from vlaad_ray.envs.libero import LiberoEnv
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.types import ActionChunk, EpisodeKey, InitState

BUDGET, HORIZON, DWELL = 60, 3, 10
METADATA = {"policy": "student", "actions": HORIZON}


@pytest.fixture
def policy(tmp_path):
    return StudentPolicy.from_pretrained(synthetic.write_student(tmp_path / "student"), execute=HORIZON)


class OpenpiExample:
    """What openpi's examples/libero/main.py does at each step, behind our interface of a policy.

    Its simulator's images are bottom-up, and it turns them by 180 degrees.
    """

    needs_images = True

    def __init__(self, server):
        self._broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", server.port), HORIZON)

    def reset(self, instruction):
        self._broker.reset()

    def infer(self, observation):
        bottom_up = {camera: image[::-1] for camera, image in observation.images.items()}
        element = {
            "observation/image": np.ascontiguousarray(bottom_up["agentview"][::-1, ::-1]),
            "observation/wrist_image": np.ascontiguousarray(bottom_up["wrist"][::-1, ::-1]),
            "observation/state": observation.proprio,
            "prompt": observation.instruction,
        }
        return ActionChunk(self._broker.infer(element)["actions"][None])


def test_a_whole_episode_on_real_libero_is_the_same_as_without_a_network(policy):
    """A picture mirrored, turned or of the wrong camera, a stale chunk, a gripper of another count: all would show."""
    spec = EpisodeSpec(EpisodeKey("libero_object", 0, InitState("stored", 20), "student", 0, "00000000"), budget=BUDGET)
    env = LiberoEnv("libero_object", 0, EnvConfig(image_size=64))
    actuation = ActuationConfig(gripper_dwell=DWELL)
    here = run_episode(env, Shaped(policy, shape(None, None, actuation)), spec)
    with PolicyServer(policy, METADATA, ServerConfig(port=0, actuation=actuation)) as server:
        there = run_episode(env, OpenpiExample(server), spec)
        answered = server.counts.answered
    env.close()
    assert len(there) == BUDGET
    assert answered == BUDGET / HORIZON
    assert len(np.unique(here.actions[:, 0])) == BUDGET, "the student must react to what it sees"
    np.testing.assert_array_equal(there.actions, here.actions)
    np.testing.assert_array_equal(there.proprio, here.proprio)


def test_its_key_is_our_token_and_an_error_leaves_it_working(policy, tmp_path):
    (tmp_path / "token").write_text("a-token-of-sufficient-length")
    with PolicyServer(policy, METADATA, ServerConfig(port=0, token_file=tmp_path / "token")) as server:
        with pytest.raises(InvalidStatus, match="HTTP 401"):
            WebsocketClientPolicy("127.0.0.1", server.port, api_key="another-token-of-that-length")
        client = WebsocketClientPolicy("127.0.0.1", server.port, api_key="a-token-of-sufficient-length")
        assert client.get_server_metadata() == METADATA
        pixels = np.zeros((32, 32, 3), np.uint8)
        element = {"observation/image": pixels, "observation/state": np.zeros(8), "prompt": "go"}
        with pytest.raises(RuntimeError, match="'observation/wrist_image' is missing"):
            client.infer(element)
        answer = client.infer({**element, "observation/wrist_image": pixels})
        assert answer["actions"].shape == (HORIZON, 7)
        assert answer["server_timing"]["infer_ms"] > 0


def test_float_pictures_channels_first_and_a_list_as_state_get_the_same_answer(policy):
    """What openpi's own server takes from the same client: here they raised RuntimeError."""
    random = np.random.default_rng(0)
    pictures = {key: random.integers(0, 256, (32, 40, 3), np.uint8) for key in ("image", "wrist_image")}
    state = random.random(8).astype(np.float32)

    def element(convert, state):
        return {f"observation/{key}": convert(each) for key, each in pictures.items()} | {
            "observation/state": state,
            "prompt": "go",
        }

    with PolicyServer(policy, METADATA, ServerConfig(port=0, actuation=ActuationConfig(0, 0, 0))) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        expected = client.infer(element(lambda picture: picture, state))["actions"]
        for convert in (
            lambda picture: picture.transpose(2, 0, 1),
            lambda picture: picture / 255,
            lambda picture: (picture / 255).astype(np.float32).transpose(2, 0, 1),
        ):
            for given in (state.astype(np.float64), state.tolist()):
                np.testing.assert_array_equal(client.infer(element(convert, given))["actions"], expected)
