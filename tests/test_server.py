"""The policy server: whose answer is whose, who gets in, and what nobody can do to it."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pytest
import synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vlaad_ray.configs import ActuationConfig, ServeConfig, ServedStudentConfig, ServerConfig, UserError
from vlaad_ray.deploy import access, metrics
from vlaad_ray.deploy.server import PolicyServer, run
from vlaad_ray.serving import protocol
from vlaad_ray.serving.batcher import Batcher
from vlaad_ray.serving.rhythm import Rhythm
from vlaad_ray.types import ActionChunk, Observation

TOKEN = "a-token-of-sufficient-length"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


class Echo:
    """Two actions that hold what was observed: an answer that went astray would show. Notes the sizes of batches.

    Its gripper is closed where the first number is not negative. Above 5, the number breaks the batch that it is in;
    above 2, the answer is out of range.
    """

    needs_images = True
    cameras = ("agentview",)

    def __init__(self, first_batch_may_end=None):
        self.sizes, self._may_end = [], first_batch_may_end

    def infer_batch(self, observations):
        self.sizes.append(len(observations))
        if self._may_end is not None and len(self.sizes) == 1:
            self._may_end.wait()
        numbers = [observation.proprio[0] for observation in observations]
        if max(numbers) > 5:
            raise FloatingPointError("the logits are not finite")
        return [
            ActionChunk(np.array([[number] * 6 + [1 if number >= 0 else -1]] * 2, np.float32)) for number in numbers
        ]


def request(number=0.0, prompt="go", **changes):
    observation = Observation(prompt, np.full(8, number, np.float32), {"agentview": PIXELS})
    return {**protocol.pack_observation(observation), **changes}


@contextlib.contextmanager
def serving(policy=None, **config):
    settings = {"port": 0, "actuation": ActuationConfig(0, 0, 0), **config}
    with PolicyServer(policy or Echo(), {"policy": "echo"}, ServerConfig(**settings)) as server:
        yield server


@contextlib.contextmanager
def client(server, token=None):
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    with connect(server.url, compression=None, proxy=None, additional_headers=headers) as connection:
        assert protocol.unpack(connection.recv(20)) == {"policy": "echo"}
        yield connection


def ask(connection, message):
    connection.send(message if isinstance(message, bytes | str) else protocol.pack(message))
    reply = connection.recv(20)
    return reply if isinstance(reply, str) else protocol.unpack(reply)["actions"]


def get(server, path, token=None):
    """Status and text of a plain HTTP request."""
    headers = {"Authorization": f"Api-Key {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{server.host}:{server.port}{path}", headers=headers), timeout=20
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def stats(server, token=None):
    return json.loads(get(server, "/stats", token)[1])


def test_clients_that_wait_together_share_a_batch_and_each_gets_its_own_answer():
    """One request keeps the policy busy until eight more wait: the next batch must hold them all."""
    may_end, numbers = threading.Event(), np.linspace(-0.9, 0.9, 9).astype(np.float32)
    with serving(policy := Echo(may_end)) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(server)) for _ in numbers]
        for connection, number in zip(clients, numbers, strict=True):
            connection.send(protocol.pack(request(number)))
            while not policy.sizes:
                pass
        while stats(server)["waiting"] < 8:
            pass
        may_end.set()
        for connection, number in zip(clients, numbers, strict=True):
            assert (protocol.unpack(connection.recv(20))["actions"][:, :6] == number).all()
        assert policy.sizes == [1, 8]
        assert stats(server) == {"answered": 9, "refused": 0, "failed": 0, "batches": 2, "waiting": 0, "clients": 9}


def test_prometheus_reads_what_the_server_has_done(monkeypatch):
    """There was nothing for it to read. Who may see /stats may see this, in the format that its own parser takes."""
    monkeypatch.setenv("VLAAD_TOKEN", TOKEN)
    with serving() as server, client(server, TOKEN) as connection:
        for message in (request(0.5), request(0.5), "no request", request(9.0)):
            ask(connection, message)
        assert get(server, "/metrics")[0] == get(server, "/metrics", TOKEN + "x")[0] == 401
        status, text = get(server, "/metrics", TOKEN)
        assert status == 200
        done = stats(server, TOKEN)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {name: family.samples[0].value for name, family in families.items() if family.type != "histogram"}
    assert values == {f"vlaad_{name}": value for name, value in done.items()}
    assert (done["answered"], done["refused"], done["failed"]) == (2, 1, 1)
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    buckets = [sample for sample in families["vlaad_answer_seconds"].samples if sample.name.endswith("_bucket")]
    numbers = [sample.value for sample in buckets]
    assert numbers == sorted(numbers) and numbers[-1] == 2
    assert [sample.labels["le"] for sample in buckets] == [*map(str, metrics.BOUNDS), "+Inf"]


def test_an_answer_is_counted_under_the_bound_that_it_kept():
    counts = metrics.Counts()
    for seconds in (0.005, 0.0051, 7.0):
        counts.answer(seconds)
    text = metrics.exposition(counts, batches=3, waiting=0, clients=0, replica="one")
    for line in (
        'vlaad_answer_seconds_bucket{replica="one",le="0.005"} 1',
        'vlaad_answer_seconds_bucket{replica="one",le="0.01"} 2',
        'vlaad_answer_seconds_bucket{replica="one",le="5.0"} 2',
        'vlaad_answer_seconds_bucket{replica="one",le="+Inf"} 3',
        'vlaad_answer_seconds_count{replica="one"} 3',
        'vlaad_batches_total{replica="one"} 3',
    ):
        assert line in text.splitlines()


def test_answers_tell_how_long_they_took_as_those_of_openpi_do():
    with serving() as server, client(server) as connection:
        for expected in ({"infer_ms"}, {"infer_ms", "prev_total_ms"}):
            connection.send(protocol.pack(request()))
            timing = protocol.unpack(connection.recv(20))["server_timing"]
            assert timing.keys() == expected
            assert all(value > 0 for value in timing.values())


def test_what_the_policy_cannot_answer_harms_nobody_else_in_the_batch():
    """One observation that breaks a whole batch, one whose answer must not move a robot, one that is fine."""
    may_end = threading.Event()
    with serving(Echo(may_end)) as server, contextlib.ExitStack() as stack:
        first, *others = clients = [stack.enter_context(client(server)) for _ in range(4)]
        for connection, number in zip(clients, (0.0, 9.0, 3.0, 0.5), strict=True):
            connection.send(protocol.pack(request(number)))
            if connection is first:
                while stats(server)["batches"] < 1:
                    pass
        while stats(server)["waiting"] < 3:
            pass
        may_end.set()
        first.recv(20)
        assert others[0].recv(20) == "the logits are not finite"
        assert others[1].recv(20) == "the policy answered with actions that are not finite numbers in [-1, 1]"
        assert (protocol.unpack(others[2].recv(20))["actions"][:, 0] == 0.5).all()
        assert (ask(others[0], request(0.25))[:, 0] == 0.25).all(), "its connection stays open"
        assert stats(server)["failed"] == 2


@pytest.mark.parametrize("actions", [np.full((2, 7), np.nan), np.full((2, 7), 1.01), np.zeros((2, 6)), np.zeros(7)])
def test_what_is_no_action_never_leaves_the_server(actions):
    policy = Echo()
    policy.infer_batch = lambda observations: [ActionChunk(actions.astype(np.float32))] * len(observations)
    with serving(policy) as server, client(server) as connection:
        assert "the policy answered with" in ask(connection, request())


def gripper(actions):
    return actions[:, 6].tolist()


def test_clients_never_see_each_others_state():
    """A gripper's command stands for 5 steps: with one client closed and one open, a shared state would mix them up."""
    with serving(actuation=ActuationConfig(5, 0, 0)) as server, client(server) as one, client(server) as other:
        assert gripper(ask(one, request(0.5))) == [1, 1]
        assert gripper(ask(other, request(-0.5))) == [-1, -1]
        assert gripper(ask(one, request(-0.5))) == [1, 1]
        assert gripper(ask(other, request(0.5))) == [-1, -1]
        assert gripper(ask(one, request(-0.5))) == [1, -1]
        assert gripper(ask(other, request(-0.5, prompt="another task"))) == [-1, -1]
        assert gripper(ask(one, request(0.5, prompt="another task"))) == [1, 1], "a new task begins afresh"
        with client(server) as again:
            assert gripper(ask(again, request(-0.5))) == [-1, -1], "so does a new connection"


class Unsure(Echo):
    def infer_batch(self, observations):
        return [ActionChunk(each.actions, spread=np.full((2, 3), 0.1)) for each in super().infer_batch(observations)]


def test_each_client_rests_by_itself_and_is_nudged_by_itself():
    """Two actions an answer: a hand that has stayed for 4 steps is nudged with the third."""

    def nudged(connection, number, prompt="go"):
        return bool((ask(connection, request(number, prompt))[:, :3] != np.float32(number)).any())

    with (
        serving(Unsure(), actuation=ActuationConfig(0, 0, 4)) as server,
        client(server) as still,
        client(server) as moving,
    ):
        for answer in range(3):
            assert nudged(still, -0.5) == (answer == 2)
            assert not nudged(moving, -0.5 + 0.02 * answer)
        for answer in range(3):
            assert nudged(still, -0.5, "another task") == (answer == 2), "a new task begins afresh"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation/state": np.full(8, np.nan)}, "'observation/state' must be [8] finite numbers"),
        ({"observation/state": np.full(8, 1e300)}, "'observation/state' must be [8] finite numbers"),
        ({"observation/state": np.zeros((1, 8))}, "'observation/state' must be [8] finite numbers, got [1, 8] float64"),
        ({"observation/state": None}, "'observation/state' must be [8] finite numbers, got NoneType"),
        ({"observation/state": [0.0] * 7}, "'observation/state' must be [8] finite numbers, got a list of 7"),
        (
            {"observation/state": [0.0] * 7 + ["0"]},
            "'observation/state' must be [8] finite numbers, got a list of other",
        ),
        (
            {"observation/state": [0.0] * 7 + [None]},
            "'observation/state' must be [8] finite numbers, got a list of other",
        ),
        ({"observation/state": [[0.0]] * 8}, "'observation/state' must be [8] finite numbers, got a list of other"),
        ({"observation/state": [0.0] * 7 + [np.nan]}, "'observation/state' must be [8] finite numbers, got [0.0, "),
        (
            {"observation/state": np.full(8, -1.23456789e200)},
            "'observation/state' must be [8] finite numbers, got [-1.2",
        ),
        (
            {"observation/image": np.full((16, 16, 3), np.nan)},
            "uint8 or floats in [0, 1], got [16, 16, 3] float64 of nan",
        ),
        (
            {"observation/image": PIXELS.astype(np.float32)},
            "uint8 or floats in [0, 1], got [16, 16, 3] float32 of 0 to 255",
        ),
        ({"observation/image": PIXELS / 127.5 - 1}, "uint8 or floats in [0, 1], got [16, 16, 3] float64 of -1 to 1"),
        (
            {"observation/image": np.full((16, 16, 3), 6e4, np.float16)},
            "uint8 or floats in [0, 1], got [16, 16, 3] float16",
        ),
        ({"observation/image": PIXELS.astype(np.uint32)}, "uint8 or floats in [0, 1], got [16, 16, 3] uint32"),
        ({"observation/image": PIXELS.tolist()}, "uint8 or floats in [0, 1], got a list of 16"),
        ({"observation/image": PIXELS[None]}, "uint8 or floats in [0, 1], got [1, 16, 16, 3] uint8"),
        ({"observation/image": PIXELS[:3]}, "got [3, 16, 3] uint8: channels first or last?"),
        (
            {"observation/image": PIXELS[..., :1]},
            "'observation/image' must be [H, W, 3] or [3, H, W], uint8 or floats in",
        ),
        ({"observation/image": PIXELS[:0]}, "uint8 or floats in [0, 1], got [0, 16, 3]"),
        ({"observation/wrist_image": "x"}, "'observation/wrist_image' must be [H, W, 3] or [3, H, W], uint8 or floats"),
        ({"observation/wrist_imag": PIXELS}, "'observation/wrist_imag' is no camera's key; those are observation/"),
        ({"prompt": " "}, "'prompt' must be the instruction, of 1 to 2000 characters, got an empty one"),
        ({"prompt": "x" * 3000}, "'prompt' must be the instruction, of 1 to 2000 characters, got text of 3000"),
        ({"prompt": None}, "'prompt' must be the instruction, got NoneType"),
    ],
)
def test_a_bad_request_gets_a_line_that_names_its_key_and_the_client_may_ask_on(changes, says):
    """openpi-client raises the text and never connects again by itself: a closed connection would end its program."""
    with serving() as server, client(server) as connection:
        reply = ask(connection, {**request(), **changes})
        assert says in reply
        assert "\n" not in reply
        assert (ask(connection, request(0.5))[:, 0] == 0.5).all()


def test_a_camera_that_is_missing_is_named():
    message = request()
    del message["observation/image"]
    with serving() as server, client(server) as connection:
        assert ask(connection, message) == "'observation/image' is missing: the policy looks through this camera"
        assert ask(connection, "hello") == "expected a binary message, got text"


VALID = protocol.pack(request())
MALFORMED = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=20),
    st.integers(0, len(VALID) - 1).map(lambda length: VALID[:length]),
    # Flipped bytes in the head, where lengths and types are.
    st.lists(st.tuples(st.integers(0, 120), st.integers(1, 255)), min_size=1, max_size=4).map(
        lambda flips: bytes(byte ^ dict(flips).get(index, 0) for index, byte in enumerate(VALID))
    ),
    st.tuples(
        st.sampled_from([*request()]),
        st.one_of(
            st.none(),
            st.floats(),
            st.binary(max_size=9),
            st.fixed_dictionaries(
                {
                    b"__ndarray__": st.just(True),
                    b"data": st.binary(max_size=48),
                    b"dtype": st.sampled_from(["|u1", "<f4", "<f8", "|O", "<i8", "|b1", 3, ">f4"]),
                    b"shape": st.lists(st.sampled_from([8, 0, 1, 3, -1, 2**40]), max_size=3),
                }
            ),
        ),
    ).map(lambda change: msgpack.packb({**msgpack.unpackb(VALID), change[0]: change[1]})),
)


def test_ten_thousand_malformed_truncated_and_oversized_messages_leave_it_serving():
    """While a well-behaved client goes on asking. Each gets its reply, over the connection that it came by."""
    with serving(max_connections=4) as server, client(server) as good, contextlib.ExitStack() as stack:
        bad = stack.enter_context(client(server))

        @settings(max_examples=110, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(MALFORMED, min_size=20, max_size=20), st.integers(1, 10**6))
        def flood(messages, seed):
            random = np.random.default_rng(seed)
            cut = [VALID[: random.integers(len(VALID))] for _ in range(40)]
            noise = [random.bytes(random.integers(1, 100)) for _ in range(40)]
            for message in (*messages, *cut, *noise):
                bad.send(message)
                bad.recv(20)
            assert (ask(good, request(0.5))[:, 0] == 0.5).all()

        flood()
        assert server.counts.refused >= 10_000
        for size in (protocol.MAX_MESSAGE + 1, 3 * protocol.MAX_MESSAGE):
            with client(server) as huge, pytest.raises(ConnectionClosed):
                huge.send(bytes(size))
                huge.recv(20)  # code 1009, if that arrives before the line goes dead
        hello = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        hello += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        for start in (b"", b"\xff" * 9000, hello[:40], hello, hello + b"\x82\xff" + bytes(7), hello + b"\x02\x7e\xff"):
            with socket.create_connection((server.host, server.port)) as raw:
                raw.sendall(start)  # and away in the middle of it
        assert (ask(good, request(0.5))[:, 0] == 0.5).all()
        assert (ask(bad, request(0.25))[:, 0] == 0.25).all()


def test_who_has_not_the_token_is_refused_at_the_handshake(monkeypatch):
    monkeypatch.setenv("VLAAD_TOKEN", TOKEN)
    with serving() as server:
        with client(server, TOKEN) as connection:
            assert ask(connection, request()).shape == (2, 7)
        for wrong in (None, TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
            with pytest.raises(InvalidStatus, match="HTTP 401"), client(server, wrong):
                raise AssertionError("let in")
            assert get(server, "/stats", wrong)[0] == 401
        twice = [("Authorization", f"Api-Key {TOKEN}")] * 2
        for headers in (twice, {"Authorization": TOKEN}, {"Authorization": "Api-Key \xfc\x80"}):
            with pytest.raises(InvalidStatus, match="HTTP 401"):
                connect(server.url, proxy=None, additional_headers=headers)
        assert get(server, "/healthz") == (200, "OK\n"), "a prober has no token"
        assert get(server, "/stats", TOKEN)[0] == 200


def test_tokens_come_from_a_file_or_the_environment_and_other_machines_need_one(monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert access.read_token(ServerConfig(host="0.0.0.0", token_file=path)) == TOKEN
    for host in ("127.0.0.1", "::1", "localhost"):
        assert access.read_token(ServerConfig(host=host)) is None
    assert access.read_token(ServerConfig(host="0.0.0.0", allow_no_token=True)) is None
    with pytest.raises(UserError, match=r"--host 0.0.0.0 lets other machines in: give a token in VLAAD_TOKEN"):
        PolicyServer(Echo(), {}, ServerConfig(host="0.0.0.0", port=0))
    path.write_text("short")
    with pytest.raises(UserError, match="a token is 16 or more"):
        access.read_token(ServerConfig(token_file=path))
    with pytest.raises(UserError, match="does not exist"):
        access.read_token(ServerConfig(token_file=tmp_path / "missing"))
    monkeypatch.setenv("VLAAD_TOKEN", "")  # a secret that was not filled in must not let everybody in
    with pytest.raises(UserError, match="VLAAD_TOKEN: a token is 16 or more"):
        access.read_token(ServerConfig())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"host": "no.such.host.invalid"}, "is no address"),
        ({"port": 70000}, "--port must be 0 to 65535"),
        ({"max_connections": 0}, "--max-connections must be 1 or more"),
        ({"max_batch": 0}, "--max-batch must be 1 or more"),
        ({"actuation": ActuationConfig(gripper_dwell=-1)}, "--gripper-dwell must be 0 or more"),
        ({"actuation": ActuationConfig(gripper_memory=-1)}, "--gripper-memory must be 0 or more"),
        ({"actuation": ActuationConfig(nudge_after=-1)}, "--nudge-after must be 0 or more"),
        ({"max_wait_ms": -1}, "--max-wait-ms must be 0 or more"),
    ],
)
def test_a_server_that_cannot_work_is_refused(config, says):
    with pytest.raises(UserError, match=says), serving(**config):
        raise AssertionError("started")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_torch_does_not_have_is_one_line(checkpoint, device):
    """A build of torch for CPUs: AssertionError; a slip of the pen: RuntimeError."""
    with pytest.raises(UserError, match=f"^--device {device}: torch .* cannot compute there") as raised:
        run(ServeConfig(ServedStudentConfig(checkpoint), device=device))
    assert "\n" not in str(raised.value)


def test_one_client_too_many_is_turned_away_until_another_leaves():
    with serving(max_connections=2) as server, client(server) as stays:
        with client(server), pytest.raises(InvalidStatus, match="HTTP 503"), client(server):
            raise AssertionError("let in")
        assert get(server, "/healthz")[0] == 200
        while stats(server)["clients"] > 1:
            pass
        with client(server) as next_one:
            assert ask(next_one, request()).shape == ask(stays, request()).shape


def test_no_page_in_a_browser_may_use_its_visitors_server():
    """A page of any origin may open a websocket to 127.0.0.1; only the server can refuse it."""
    with serving() as server, pytest.raises(InvalidStatus, match="HTTP 403"):
        connect(server.url, proxy=None, origin="https://example.com")


def test_clients_that_left_are_forgotten():
    """A server runs for months: what it learnt of every client there ever was must not pile up."""
    rhythm = Rhythm(4, 0.01)

    async def come_and_go():
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(Echo().infer_batch, 4, rhythm, thread)
            for number in range(5):
                for _ in range(3):
                    await batcher.infer(f"client {number}", Observation("", np.zeros(8, np.float32)))
                batcher.leave(f"client {number}")
            await batcher.close()

    asyncio.run(come_and_go())
    assert not rhythm._thinks
    assert not rhythm._answered


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return synthetic.write_student(tmp_path_factory.mktemp("student"))


def command(*flags):
    return [sys.executable, "-m", "vlaad_ray.deploy.server", *map(str, flags)]


def test_the_command_serves_until_it_is_told_to_stop(checkpoint):
    flags = ("--checkpoint", checkpoint, "--port", 0, "--execute", 2)
    with subprocess.Popen(command(*flags), stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[-1]
        with connect(url, compression=None, proxy=None) as connection:
            metadata = protocol.unpack(connection.recv(20))
            cameras = ["observation/image", "observation/wrist_image"]
            assert (metadata["render"], metadata["cameras"], metadata["actions"]) == ("fast", cameras, 2)
            actions = ask(connection, {**request(), "observation/wrist_image": PIXELS})
            assert actions.shape == (2, 7)
            assert np.abs(actions).max() <= 1
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed, match="1001"):
                connection.recv(20)
    assert process.returncode == 0


def test_what_a_user_can_mend_is_one_line(checkpoint, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, says in (
            (("--checkpoint", tmp_path), "does not exist; pass a student checkpoint"),
            (("--checkpoint", checkpoint, "--execute", 9), "choose 1 to"),
            (("--checkpoint", checkpoint, "--port", taken.getsockname()[1]), "choose another --port"),
        ):
            done = subprocess.run(command(*flags), capture_output=True, text=True)
            assert done.returncode == 2
            assert done.stderr.startswith("error: ")
            assert says in done.stderr
            assert done.stderr.count("\n") == 1
