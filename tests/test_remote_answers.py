"""What a policy server may say, and what our client makes of it."""

import itertools
import traceback

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from policy_servers import HELLO, METADATA, actions, client, seen, serving, serving_bytes

from vlaad_ray.configs import RemoteConfig, UserError
from vlaad_ray.serving import protocol
from vlaad_ray.teachers import find_teacher
from vlaad_ray.teachers.remote import reason

FIVE = np.zeros((5, 7))
TOO_LONG = bytes(protocol.MAX_MESSAGE + 1)
TEXT_AND_TIMES = {
    "stages": np.array([["reach", "grasp"]]),
    "raw": np.array([b"left"]),
    "since": np.array(["2026-01-01"], "M8[D]"),
    "took": np.array([3], "m8[ms]"),
}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (actions(np.full((5, 7), np.nan)), "actions that are not finite"),
        (actions(np.zeros((5, 32))), r"\[5, 32\] float64 as actions, not \[K, 7\]: serve a policy for this robot"),
        (actions(np.zeros(7)), r"\[7\] float64 as actions"),
        (actions(np.zeros((3, 7))), "--execute 5: .* answers with 3 actions"),
        (actions([[0.0] * 7]), "list.* as actions"),
        (actions(np.full((5, 7), "up")), "dict as actions"),
        (protocol.pack({"action": np.zeros((5, 7))}), "NoneType as actions"),
        (b"\xc1", "does not speak openpi's protocol: not a MessagePack message"),
        (msgpack.packb([1, 2]), "expected a map, got list"),
        ("Traceback:\n  File x\nKeyError: 'observation/image'", "could not answer: KeyError: 'observation/image'"),
    ],
)
def test_an_answer_that_is_no_action_names_the_server_and_what_is_wrong(reply, message):
    """A NaN or a policy for another robot must not move the arm, nor end as a failed episode."""
    with serving_bytes(reply) as url, pytest.raises(UserError, match=message) as error:
        client(url).infer(seen())
    assert url in one_line(error)


def test_actions_beyond_the_range_are_clipped():
    with serving_bytes(actions(np.full((5, 7), 1.3))) as url:
        assert client(url).infer(seen()).actions.max() == 1.0


def test_text_and_times_beside_the_actions_are_taken_as_openpis_client_takes_them():
    """Only the actions are read; the whole answer was refused for a label beside them."""
    reply = msgpack_numpy.packb({"actions": FIVE, "more": [TEXT_AND_TIMES]})
    assert msgpack_numpy.unpackb(reply)["more"][0]["stages"].shape == (1, 2)
    with serving_bytes(reply) as url:
        np.testing.assert_array_equal(client(url).infer(seen()).actions, FIVE)


def test_text_that_is_none_cannot_end_the_client():
    """Decoding such an array raises SystemError."""
    text = {b"__ndarray__": True, b"data": b"\xff" * 8, b"dtype": "<U2", b"shape": (1,)}
    with serving_bytes(protocol.pack({"actions": FIVE, "more": text})) as url:
        np.testing.assert_array_equal(client(url).infer(seen()).actions, FIVE)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_an_answer_over_the_limit_is_explained_after_one_inference():
    """Asked again, the server would compute the same answer again; the fault seemed to be a broken connection."""
    asked = []

    def handle(connection):
        connection.send(HELLO)
        for request in connection:
            asked.append(request)
            connection.send(TOO_LONG)

    with serving(handle) as url, pytest.raises(UserError, match="sent more than 16 MiB in one message") as error:
        client(url).infer(seen())
    assert url in one_line(error)
    assert len(asked) == 1


def test_metadata_over_the_limit_is_explained_at_once():
    connections = []

    def handle(connection):
        connections.append(connection)
        connection.send(TOO_LONG)
        connection.recv()

    with serving(handle) as url, pytest.raises(UserError, match="sent more than 16 MiB in one message"):
        client(url)
    assert len(connections) == 1


def test_a_request_over_the_servers_limit_is_explained_at_once():
    with (
        serving_bytes(actions(FIVE), max_size=1000) as url,
        pytest.raises(UserError, match="takes no message as long as an observation") as error,
    ):
        client(url).infer(seen())
    assert url in one_line(error)


def test_a_request_that_kills_the_server_again_and_again_is_given_up_with_the_last_reason():
    def handle(connection):
        connection.send(HELLO)
        connection.recv()
        connection.close(1011, "out of\nmemory")

    told = r"broke the connection 4 times over one request \(received 1011 .* out of memory"
    with serving(handle) as url, pytest.raises(UserError, match=told) as error:
        client(url).infer(seen())
    one_line(error)


# --- errors ----------------------------------------------------------------------------------------------------------


def as_sent(error, cause=None):
    """What openpi's server sends of an exception: its traceback."""
    try:
        raise error from cause
    except Exception:
        return traceback.format_exc()


def grouped():
    """A group whose one exception was raised itself."""
    try:
        raise ValueError("no such camera\nknown are: two")
    except ValueError as error:
        return ExceptionGroup("unhandled", [error])


CUDA = "CUDA error: device-side assert triggered\nFor debugging consider …\nCompile with `TORCH_USE_CUDA_DSA`."
KEYS = "Error(s) for PI0:\n\tMissing key(s) in state_dict: 'a.weight'.\n\tUnexpected key(s): 'b'."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (as_sent(RuntimeError(CUDA)), "RuntimeError: CUDA error: device-side assert triggered"),
        (as_sent(RuntimeError(KEYS)), "RuntimeError: Error(s) for PI0: Missing key(s) in state_dict: 'a.weight'."),
        (as_sent(ValueError("\n\nshapes differ\nsee above")), "ValueError: shapes differ"),
        (as_sent(RuntimeError("no answer\nat all"), KeyError("prompt")), "RuntimeError: no answer"),
        (as_sent(grouped()), "ValueError: no such camera"),
        (as_sent(AssertionError()), "AssertionError"),
        ("model is loading\ntry again", "model is loading"),
        (" \n", "no reason given"),
        ("", "no reason given"),
    ],
    ids=itertools.count(),
)
def test_an_error_of_several_lines_is_told_by_its_type_and_first_line(text, told):
    """Its last line alone, say the advice below a CUDA error, tells neither."""
    assert reason(text) == told
    with serving_bytes(text) as url, pytest.raises(UserError) as error:
        client(url).infer(seen())
    assert one_line(error) == f"{url} could not answer: {told}"


def test_an_error_in_place_of_metadata_is_told_the_same_way():
    with serving_bytes(first=as_sent(RuntimeError(CUDA))) as url, pytest.raises(UserError) as error:
        client(url)
    assert one_line(error).endswith("it sent text first: RuntimeError: CUDA error: device-side assert triggered")


def test_an_endless_error_is_cut():
    assert len(reason("x" * 10**6)) == 300


# --- metadata --------------------------------------------------------------------------------------------------------


def described(metadata, label=""):
    with serving_bytes(first=msgpack_numpy.packb(metadata)) as url:
        return find_teacher("remote", RemoteConfig(url=url, label=label), "libero_object", 0)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        (224, 224),
        ("224", 224),
        ([224, 224], 224),
        (["224", "224"], 224),
        (np.array([224, 224]), 224),
        (np.int64(224), 224),
        (0, 0),
        (None, 0),
    ],
    ids=itertools.count(),
)
def test_an_image_size_is_understood_however_a_server_writes_it(size, pixels):
    """Compared as it came with the run's own, a number, it refused every run."""
    assert described({**METADATA, "image_size": size}).trained.image_size == pixels


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("image_size", [180, 320]),
        ("image_size", "large"),
        ("image_size", -224),
        ("image_size", True),
        ("image_size", 224.5),
        ("image_size", []),
        ("image_size", {"height": 224}),
        ("image_size", np.zeros((40, 40))),
        ("image_size", np.array(["224"])),
        ("render", True),
        ("render", ["exact"]),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused_when_connecting(entry, value):
    with pytest.raises(UserError, match=f"says in its metadata that {entry} is .*; mend that in the server") as error:
        described({**METADATA, entry: value})
    assert len(one_line(error)) < 300


def test_text_and_times_in_metadata_are_taken_and_tell_policies_apart():
    names = {described({**METADATA, **more}).name for more in ({}, TEXT_AND_TIMES, {"stages": np.array(["reach"])})}
    assert len(names) == 3


def test_metadata_whose_keys_are_not_text_are_refused_in_one_line():
    with pytest.raises(UserError, match="metadata with keys that are not text") as error:
        described({**METADATA, "more": {b"key": 1}})
    one_line(error)


def test_names_of_teachers_stay_as_they_were():
    """Episodes are found again by it: the hash is that of the metadata as JSON, sorted."""
    assert described({**METADATA, "actions": 5}, "pi05").name == "pi05-ff77de8f"
