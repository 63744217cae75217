"""openpi's messages, byte for byte, and what must never get through."""

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from vlaad_ray.serving import protocol
from vlaad_ray.types import Observation

MESSAGE = {
    "actions": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.float64(1.5),
    "flag": True,
    "list": [1, np.int64(2)],
    "empty": np.zeros((0, 7), np.uint8),
}
# What openpi-client 0.1.2 makes of it: openpi_client.msgpack_numpy.packb(MESSAGE).
OPENPI = (
    b"\x85\xa7actions\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x18\x00\x00\x00\x00\x00\x00\x80?\x00\x00\x00@"
    b"\x00\x00@@\x00\x00\x80@\x00\x00\xa0@\xc4\x05dtype\xa3<f4\xc4\x05shape\x92\x02\x03\xa1n\xcb?\xf8\x00\x00\x00"
    b"\x00\x00\x00\xa4flag\xc3\xa4list\x92\x01\x83\xc4\r__npgeneric__\xc3\xc4\x04data\x02\xc4\x05dtype\xa3<i8"
    b"\xa5empty\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x00\xc4\x05dtype\xa3|u1\xc4\x05shape\x92\x00\x07"
)


def test_messages_are_those_of_openpi_to_the_last_byte():
    assert protocol.pack(MESSAGE) == OPENPI
    back = protocol.unpack(OPENPI)
    np.testing.assert_array_equal(back["actions"], MESSAGE["actions"])
    assert (back["n"], back["flag"], back["list"], back["empty"].shape) == (1.5, True, [1, 2], (0, 7))


def test_the_installed_openpi_client_agrees():
    assert msgpack_numpy.packb(MESSAGE) == OPENPI


def array(data=b"\0" * 8, dtype="<f4", shape=(2,)):
    return msgpack.packb({"a": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.text(), st.floats()),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", "a"]), inner
                )
            ),
        ).map(msgpack.packb),
    )
)
@example(array(dtype="|O"))
@example(array(dtype="<f4,<f4"))
@example(array(dtype="banana"))
@example(array(shape=(3,)))
@example(array(shape=(-2, -1)))
@example(array(data=7))
@example(msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "|u1", b"data": 1000}}))
@example(b"\x81" * 3000)
def test_any_bytes_are_a_map_or_a_message_error(data):
    """An exception of another kind would end the connection's thread, or the run, with a traceback."""
    try:
        assert isinstance(protocol.unpack(data), dict)
    except protocol.MessageError as error:
        assert "\n" not in str(error)[:300]


def test_objects_are_never_unpickled_nor_sent():
    for dtype in ("|O", "O", "|V8", "|S8", "<c8"):
        with pytest.raises(protocol.MessageError, match="not accepted"):
            protocol.unpack(array(dtype=dtype))
    with pytest.raises(TypeError, match="cannot be sent"):
        protocol.pack({"a": np.array([object()])})


def observation(**changes):
    random = np.random.default_rng(0)
    images = {camera: random.integers(0, 256, (6, 4, 3), dtype=np.uint8) for camera in ("agentview", "wrist")}
    fields = {"instruction": "pick up", "proprio": np.arange(8, dtype=np.float32), "images": images, **changes}
    return Observation(**fields)


def test_images_travel_as_openpi_turns_them():
    """openpi shows its models the simulator's bottom-up image turned by 180 degrees; ours are upright."""
    seen = observation()
    bottom_up = seen.images["wrist"][::-1]
    message = protocol.pack_observation(seen)
    np.testing.assert_array_equal(message["observation/wrist_image"], bottom_up[::-1, ::-1])
    np.testing.assert_array_equal(message["observation/state"], seen.proprio)
    back = protocol.unpack_observation(protocol.unpack(protocol.pack(message)))
    assert back.instruction == seen.instruction
    for camera in seen.images:
        np.testing.assert_array_equal(back.images[camera], seen.images[camera])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"prompt": 3}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"observation/state": np.full(8, np.nan)}, "observation/state"),
        ({"observation/state": np.zeros(7)}, "observation/state"),
        ({"observation/state": [0.0] * 9}, "observation/state"),
        ({"observation/image": np.full((4, 4, 3), 2, np.float32)}, "observation/image"),
        ({"observation/wrist_image": np.zeros((4, 4), np.uint8)}, "observation/wrist_image"),
    ],
)
def test_a_bad_observation_is_refused_by_the_name_of_its_key(changes, key):
    with pytest.raises(protocol.MessageError, match=key):
        protocol.unpack_observation({**protocol.pack_observation(observation()), **changes})


def libero_policy_of_openpi(image):
    """The conversion in openpi's own server (src/openpi/policies/libero_policy.py, _parse_image)."""
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    return image.transpose(1, 2, 0) if image.shape[0] == 3 else image


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_float_and_channels_first_pictures_are_taken_as_openpis_server_takes_them(dtype, channels_first):
    """They were refused. Every level of 256 must come back as itself, and anything between as openpi has it."""
    levels = np.random.default_rng(0).permutation(np.arange(256 * 3) % 256).reshape(16, 16, 3).astype(np.uint8)
    between = np.random.default_rng(1).random((16, 16, 3))
    for picture in (levels, between) if dtype != np.uint8 else (levels,):
        sent = picture.astype(dtype) if picture is between or dtype == np.uint8 else (levels / 255).astype(dtype)
        sent = np.ascontiguousarray(sent.transpose(2, 0, 1)) if channels_first else sent
        message = {**protocol.pack_observation(observation()), "observation/image": sent}
        taken = protocol.unpack_observation(protocol.unpack(protocol.pack(message))).images["agentview"]
        assert taken.dtype == np.uint8
        np.testing.assert_array_equal(taken[:, ::-1], libero_policy_of_openpi(sent))
        if picture is levels:
            np.testing.assert_array_equal(taken[:, ::-1], levels)


@pytest.mark.parametrize("kind", [list, np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_a_state_is_any_eight_numbers_in_an_array_or_a_list(kind):
    """openpi's server works with any of them; ours took arrays alone."""
    state = [0, 1, 2, 3, 4, 5, np.float64(6), 7.0] if kind is list else np.arange(8).astype(kind)
    message = {**protocol.pack_observation(observation()), "observation/state": state}
    taken = protocol.unpack_observation(protocol.unpack(protocol.pack(message))).proprio
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, np.arange(8))
