"""openpi's websocket protocol for policies, as bytes: what both a client and a server of it need, and nothing else.

A server sends its metadata when a client connects; then every binary message is one observation, answered by one
{"actions": [K, A], …}. A text message is an error. Messages are MessagePack. An array is the map {b"__ndarray__": True,
b"data": bytes, b"dtype": "<f4", b"shape": [...]}, a numpy scalar {b"__npgeneric__": True, b"data": number,
b"dtype": …}, byte for byte as openpi-client 0.1.2 writes them (openpi_client.msgpack_numpy). Nothing is unpickled.

Observations have the keys of openpi's LIBERO example (examples/libero/main.py): `observation/image` and
`observation/wrist_image` [H, W, 3] uint8, turned by 180 degrees against the simulator's (bottom-up) images, which is
upright but mirrored; `observation/state` [P], our proprioception; `prompt`, the instruction. Other robots' cameras are
`observation/NAME_image`, not mirrored. As openpi's own server does (openpi, policies/libero_policy.py), ours also takes
pictures of floats in [0, 1], of which it makes 255 x, cut off to an integer; pictures with their channels first; and a
state of any numbers, in an array or a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import msgpack
import numpy as np

from vlaad_ray.types import LIBERO, Embodiment, Observation

MIRRORED = frozenset(LIBERO.cameras)
"""Cameras whose images travel mirrored."""
STATE, PROMPT, ACTIONS = "observation/state", "prompt", "actions"
MAX_MESSAGE = 16 * 2**20
"""Bytes; two uncompressed images of 1,000 pixels are 6 MB."""
MAX_PROMPT = 2000
"""Characters; students read at most a few hundred."""


class MessageError(ValueError):
    """Bytes that are not a message of this protocol, or a message without what it must hold. One line."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Maps, lists, strings, numbers and numpy arrays to bytes. Raises TypeError for anything else."""
    return bytes(msgpack.packb(message, default=_pack_numpy))


def unpack(data: bytes) -> dict[str, Any]:
    """Bytes to a map; arrays in it are read-only views of `data`. Raises MessageError."""
    return _unpack(data, _unpack_numpy)


def unpack_of_server(data: bytes) -> dict[str, Any]:
    """The same for what a server sends, which may hold more than we read: arrays of text, say, stay maps of parts."""
    return _unpack(data, _unpack_numbers)


def _unpack(data: bytes, unpack_map: Callable[[dict[Any, Any]], Any]) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(data, object_hook=unpack_map)
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.exceptions.UnpackException) as error:
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise MessageError(f"not a MessagePack message of openpi's protocol ({what})") from None
    if not isinstance(message, dict):
        raise MessageError(f"expected a map, got {type(message).__name__}")
    return message


def image_key(camera: str) -> str:
    """Our name of a camera -> the protocol's key."""
    return "observation/image" if camera == "agentview" else f"observation/{camera}_image"


def pack_observation(observation: Observation) -> dict[str, Any]:
    """An observation as a message. All its images go along, in the size that they have."""
    images = {image_key(camera): _mirrored(camera, image) for camera, image in observation.images.items()}
    return {**images, STATE: observation.proprio, PROMPT: observation.instruction}


def unpack_observation(
    message: Mapping[str, Any], cameras: Sequence[str] = (), body: Embodiment = LIBERO
) -> Observation:
    """The observation in a message of the robot `body`. Raises MessageError naming the key at fault.

    `cameras`: those whose images must be there; others of the robot's may be. Keys that say nothing to us are ignored,
    as openpi does, unless they hold an image: a camera under a wrong name must not pass for one that is not there.
    """
    keys = {camera: image_key(camera) for camera in dict.fromkeys((*body.cameras, *cameras))}
    images = {camera: _mirrored(camera, _image(key, message[key])) for camera, key in keys.items() if key in message}
    for key in message.keys() - keys.values():
        if isinstance(message[key], np.ndarray) and message[key].ndim == 3:
            raise MessageError(f"{key[:80]!r} is no camera's key; those are {', '.join(keys.values())}")
    for camera in cameras:
        if camera not in images:
            raise MessageError(f"{keys[camera]!r} is missing: the policy looks through this camera")
    return Observation(_prompt(message.get(PROMPT)), _state(message.get(STATE), body.proprio_dim), images)


def _prompt(value: object) -> str:
    if not isinstance(value, str):
        raise MessageError(f"{PROMPT!r} must be the instruction, got {describe(value)}")
    if not value.strip() or len(value) > MAX_PROMPT:
        what = f"text of {len(value)} characters" if value.strip() else "an empty one"
        raise MessageError(f"{PROMPT!r} must be the instruction, of 1 to {MAX_PROMPT} characters, got {what}")
    return value


def _state(value: object, size: int) -> np.ndarray:
    """[size] float32, from an array of any numbers or a list of them."""
    if size == 0:
        return np.zeros(0, np.float32)
    what = f"{STATE!r} must be [{size}] finite numbers"
    numbers = value if isinstance(value, list) else []
    if any(isinstance(each, bool) or not isinstance(each, int | float | np.number) for each in numbers):
        raise MessageError(f"{what}, got a list of other things")
    array = np.array(numbers, np.float64) if isinstance(value, list) else value
    if not isinstance(array, np.ndarray) or array.shape != (size,):
        raise MessageError(f"{what}, got {describe(value)}")
    with np.errstate(over="ignore"):
        state = array.astype(np.float32)
    if not np.isfinite(state).all():
        raise MessageError(f"{what}, got {array.tolist()}")
    return state


def _image(key: str, value: object) -> np.ndarray:
    """[H, W, 3] uint8, turned as it came. k / 255 in any kind of float comes back as k."""
    what = f"{key!r} must be [H, W, 3] or [3, H, W], uint8 or floats in [0, 1]"
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.size == 0 or value.dtype.kind not in "uf":
        raise MessageError(f"{what}, got {describe(value)}")
    first, last = value.shape[0] == 3, value.shape[2] == 3
    if first == last:
        ambiguous = ": channels first or last?" if first else ""
        raise MessageError(f"{what}, got {describe(value)}{ambiguous}")
    picture = np.moveaxis(value, 0, 2) if first else value
    if picture.dtype.kind == "f":
        with np.errstate(over="ignore"):
            scaled = 255 * picture
        if not ((scaled > -1) & (scaled < 256)).all():  # what would not be 0 to 255; NaN is neither
            raise MessageError(f"{what}, got {describe(value)} of {value.min():.6g} to {value.max():.6g}")
        picture = scaled.astype(np.uint8)
    if picture.dtype != np.uint8:
        raise MessageError(f"{what}, got {describe(value)}")
    return picture


def _mirrored(camera: str, image: np.ndarray) -> np.ndarray:
    """From ours to the protocol's, and back."""
    return np.ascontiguousarray(image[:, ::-1] if camera in MIRRORED else image)


def describe(value: object) -> str:
    """Shape and type of what came instead of an array."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _pack_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "VOc":
        raise TypeError(f"arrays of {value.dtype} cannot be sent")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack_numpy(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.frombuffer(value[b"data"], _plain(value[b"dtype"])).reshape(value[b"shape"])
    if b"__npgeneric__" in value:
        return _plain(value[b"dtype"]).type(value[b"data"])
    return value


def _unpack_numbers(value: dict[Any, Any]) -> Any:
    numpys = b"__ndarray__" in value or b"__npgeneric__" in value
    if numpys and not _is_plain(value.get(b"dtype")):
        return {str(key): part for key, part in value.items()}
    return _unpack_numpy(value)


def _plain(name: object) -> np.dtype[Any]:
    if not _is_plain(name):
        raise ValueError(f"arrays of {name!r} are not accepted")
    return np.dtype(name)


def _is_plain(name: object) -> TypeGuard[str]:
    """Numbers and booleans only: no objects, no structures."""
    return isinstance(name, str) and re.fullmatch("[<>|][biuf][1248]", name) is not None
