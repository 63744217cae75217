"""A student on a real, local Ray Serve, asked by openpi-client and by whoever should not."""

import contextlib
import shlex
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import synthetic
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vlaad_ray.configs import ActuationConfig, ServeClusterConfig, ServedStudentConfig, ServerConfig, UserError
from vlaad_ray.deploy import ray_serve
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.deploy.shaping import shape
from vlaad_ray.models.student.checkpoint import checkpoint_name
from vlaad_ray.serving import protocol
from vlaad_ray.types import Observation

TOKEN = "a-token-of-sufficient-length"
ACTUATION = ActuationConfig(gripper_dwell=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return synthetic.write_student(tmp_path_factory.mktemp("serve") / "student")


@pytest.fixture(scope="module")
def port(ray_local, checkpoint, tmp_path_factory):
    """Two replicas with a token, three clients each."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ServerConfig(port=port, token_file=token, actuation=ACTUATION, max_connections=3)
    config = ServeClusterConfig(ServedStudentConfig(checkpoint), replicas=2, cpus_per_replica=0.5, server=server)
    assert ray_serve.start(config) == f"ws://127.0.0.1:{port}"
    yield port
    ray_serve.stop()


def seen(number):
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    proprio = np.full(8, number / 10, np.float32)
    return Observation("pick up the milk", proprio, {"agentview": pixels, "wrist": pixels})


def test_openpi_clients_get_the_answers_of_the_student_and_none_of_anothers_state(port, checkpoint):
    """Four at once, over two replicas: each compares its own episode with that of a student of its own."""
    policy = StudentPolicy.from_pretrained(checkpoint)
    said = [policy.infer(seen(number)) for number in range(24)]
    assert len(np.unique([chunk.actions[:, 6] for chunk in said])) == 2, "the gripper must have something to hold"

    def act(first):
        client, shaping = WebsocketClientPolicy("127.0.0.1", port, api_key=TOKEN), shape(None, None, ACTUATION)
        metadata = client.get_server_metadata()
        assert (metadata["policy"], metadata["actions"]) == (checkpoint_name(checkpoint), 5)
        for number in range(first, 24, 4):
            answer = client.infer(protocol.pack_observation(seen(number)))
            # A batch of another size adds floats in another order.
            expected = shaping.apply(seen(number), said[number]).actions
            np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
        return client

    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(act, range(4)))
    for client in clients:
        client._ws.close()  # openpi-client has no other way


def knock(port, token=TOKEN, **headers):
    authorization = {"Authorization": f"Api-Key {token}"} if token else {}
    return connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, additional_headers=authorization | headers)


def test_who_has_not_the_token_is_refused_at_the_handshake(port):
    for token in (None, TOKEN + "x"):
        with pytest.raises(InvalidStatus, match="HTTP 401"), knock(port, token):
            raise AssertionError("let in")
    with pytest.raises(InvalidStatus, match="HTTP 403"), knock(port, Origin="https://example.com"):
        raise AssertionError("let in")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as health:
        assert health.read() == b"OK\n"


def test_a_bad_message_gets_a_line_and_an_oversized_one_ends_its_connection_alone(port):
    with knock(port) as good, knock(port) as bad:
        for connection in (good, bad):
            assert protocol.unpack(connection.recv(20))["render"] == "fast"
        for message, says in (
            (b"\xc1", "not a MessagePack message"),
            ("hello", "got text"),
            (protocol.pack({**protocol.pack_observation(seen(0)), "prompt": ""}), "'prompt' must be the instruction"),
        ):
            bad.send(message)
            assert says in bad.recv(20)
        with pytest.raises(ConnectionClosed):  # code 1009, if that arrives before the line goes dead
            bad.send(bytes(protocol.MAX_MESSAGE + 1))
            bad.recv(20)
        good.send(protocol.pack(protocol.pack_observation(seen(1))))
        assert protocol.unpack(good.recv(20))["actions"].shape == (5, 7)


def test_prometheus_reads_what_each_replica_has_done(port):
    """Requests are dealt out, also Prometheus' own: each replica tells its own figures, under its own label."""

    def scrape(token):
        url = f"http://127.0.0.1:{port}/metrics"
        headers = {"Authorization": f"Api-Key {token}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return response.headers["Content-Type"], response.read().decode()

    with knock(port) as connection:
        connection.recv(20)
        connection.send("no request")
        connection.recv(20)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            scrape(TOKEN + "x")
        refused: dict[str, float] = {}
        while len(refused) < 2:
            kind, text = scrape(TOKEN)
            assert kind == "text/plain; version=0.0.4; charset=utf-8"
            families = {family.name: family.samples[0] for family in text_string_to_metric_families(text)}
            sample = families["vlaad_refused"]
            refused[sample.labels["replica"]] = sample.value
    assert sum(refused.values()) >= 1


def test_a_full_replica_turns_clients_away(port):
    """Two replicas of three: the seventh client at the latest. Ray Serve by itself would let it wait without a word."""
    with pytest.raises(InvalidStatus, match="HTTP 503"), contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(knock(port)).recv(20)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--checkpoint /nowhere", "/nowhere/config.json does not exist"),
        ("--checkpoint {checkpoint} --host 0.0.0.0", "lets other machines in"),
        ("--checkpoint {checkpoint} --replicas 0", "--replicas must be 1 or more"),
        ("--checkpoint {checkpoint} --max-batch 0", "--max-batch must be 1 or more"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(checkpoint, flags, says):
    with pytest.raises(UserError, match=says):
        ray_serve.application({"flags": flags.format(checkpoint=shlex.quote(str(checkpoint)))})
