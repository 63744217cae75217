"""A teacher behind a policy server that speaks openpi's websocket protocol: π0, π0.5, or anything else that does.

Every environment holds a connection of its own, so at most as many as there are simulators, and opens it anew for each
episode: the protocol has no other way to say that one begins. A request that a dying server left unanswered is sent
again: such servers answer from the observation alone (ours, but for its Actuation, which then begins anew).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from vlaad_ray.configs import RemoteConfig, UserError
from vlaad_ray.serving import protocol
from vlaad_ray.types import LIBERO, ActionChunk, Embodiment, LocalPolicy, Observation, Trained

EXECUTE = 5
"""Actions executed before asking again, in openpi's LIBERO example (replan_steps)."""
IMAGE_SIZE = 224
"""Pixels in which openpi's example sends images."""
RENDERED_SIZE = 256
"""Pixels in which openpi's example and training data render them."""
BACK_OFF = (0.1, 5.0)
"""Seconds between two attempts to connect: the first pause, doubled each time up to the second."""
MAX_RESENDS = 3
"""Times that one request is sent again because the connection broke over it."""
LONGEST_REASON = 300
"""Characters of a server's error that are passed on."""


def remote_teacher(config: RemoteConfig, body: Embodiment, execute: int) -> LocalPolicy:
    """Ask the server who it is. Raises UserError if it cannot be reached or can't be told from another one.

    `execute`: actions of a chunk to execute before asking again; 0: as openpi's example does.
    """
    if not re.fullmatch(r"[\w.]*", config.label):
        raise UserError(f"--label: {config.label!r} goes into file names; use letters, digits, dots and underscores")
    client = RemoteTeacher(config, execute or EXECUTE, body)
    metadata = client.metadata
    client.close()
    if not metadata and not config.label:
        raise UserError(
            f"the server at {config.url} does not say which policy it serves; name it, say --label pi05_libero, "
            "so that episodes of two checkpoints are never mixed up"
        )
    trained = _trained(metadata, config.url)
    try:
        said = json.dumps(metadata, sort_keys=True, default=repr)
    except TypeError:
        raise UserError(f"{config.url} sends metadata with keys that are not text; mend that in the server") from None
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    return LocalPolicy(
        name=f"{config.label or 'remote'}-{digest}",
        make=functools.partial(_make, config, body, execute or EXECUTE),
        settings={"execute": execute or EXECUTE},
        trained=trained,
    )


def _trained(metadata: Mapping[str, Any], url: str) -> Trained:
    """What the server says its policy learnt from; what it leaves out is as in openpi's LIBERO data.

    The size may come as a number, its digits, or equal height and width.
    """
    render, size = (
        said.tolist() if isinstance(said, np.ndarray) else said
        for said in (metadata.get("render", "exact"), metadata.get("image_size", RENDERED_SIZE))
    )
    if not isinstance(render, str | None):
        raise UserError(f"{url} says in its metadata that render is {render!r:.80}, not text; mend that in the server")
    sides = {str(side) for side in (size if isinstance(size, list) else [0 if size is None else size])}
    if len(sides) != 1 or not all(side.isdecimal() for side in sides):
        raise UserError(
            f"{url} says in its metadata that image_size is {size!r:.80}, not the pixels along the sides of a square; "
            "mend that in the server"
        )
    return Trained(render, int(sides.pop()))


def _make(config: RemoteConfig, body: Embodiment, execute: int, _: Any) -> RemoteTeacher:
    return RemoteTeacher(config, execute, body)


class RemoteTeacher:
    """One connection, behind the interface of a policy."""

    needs_images = True

    def __init__(self, config: RemoteConfig, execute: int, body: Embodiment = LIBERO):
        self._config, self._execute, self._body = config, execute, body
        self.metadata: dict[str, Any] = {}
        """What the server says about itself."""
        self._headers = {"Authorization": f"Api-Key {_token(config.token_file)}"} if config.token_file else {}
        self._open = ExitStack()
        self._connection = self._connect()

    def reset(self, instruction: str) -> None:
        """Make the server forget what it may remember of the last episode. The instruction goes with each request."""
        if self._used:
            self._connection = self._connect()

    def infer(self, observation: Observation) -> ActionChunk:
        """Raises UserError, naming the server, for no answer in time, its own error, or an answer that is no action."""
        images = {camera: resize_with_pad(image, IMAGE_SIZE) for camera, image in observation.images.items()}
        seen = Observation(observation.instruction, observation.proprio, images)
        request = protocol.pack(protocol.pack_observation(seen))
        broken: ConnectionClosed | None = None
        for _ in range(MAX_RESENDS + 1):
            self._used = True
            try:
                self._connection.send(request)
                reply = self._connection.recv(self._config.infer_timeout_s)
            except TimeoutError:
                self.close()
                raise UserError(
                    f"{self._config.url} did not answer within {self._config.infer_timeout_s:g} s; give it more time "
                    "with --infer-timeout-s, or ask it from fewer --actors; then rerun the same command"
                ) from None
            except ConnectionClosed as error:
                _refuse_if_too_big(error, self._config.url)
                broken = error
                self._connection = self._connect()
                continue
            return self._chunk(reply)
        raise UserError(
            f"{self._config.url} broke the connection {MAX_RESENDS + 1} times over one request "
            f"({' '.join(str(broken).split())}); see the server's log"
        )

    def close(self) -> None:
        self._open.close()

    def _connect(self) -> ClientConnection:
        """A new connection and the server's metadata, tried again until `connect_timeout_s` is over."""
        config, deadline = self._config, time.monotonic() + self._config.connect_timeout_s
        pause, longest = BACK_OFF
        while True:
            self.close()
            left = max(deadline - time.monotonic(), 0.1)
            try:
                # Servers that compute in their event loop can't answer pings meanwhile: the time limit is recv's alone.
                opening = connect(
                    config.url,
                    compression=None,
                    max_size=protocol.MAX_MESSAGE,
                    open_timeout=left,
                    close_timeout=1,
                    ping_interval=None,
                    proxy=None,
                    additional_headers=self._headers,
                )
                connection = self._open.enter_context(opening)
                self.metadata = self._unpack(connection.recv(left))
                self._used = False
                return connection
            except InvalidURI:
                raise UserError(f"--url: {config.url!r} is not a websocket address, like ws://host:8000") from None
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                if isinstance(error, ConnectionClosed):
                    _refuse_if_too_big(error, config.url)
                if isinstance(error, InvalidStatus) and error.response.status_code == HTTPStatus.UNAUTHORIZED:
                    raise UserError(f"{config.url} wants another token: give its own with --token-file") from None
                if time.monotonic() + pause > deadline:
                    raise UserError(
                        f"no policy server at {config.url} within {config.connect_timeout_s:g} s "
                        f"({str(error) or type(error).__name__}); start it, or give its address with --url"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _unpack(self, message: str | bytes) -> dict[str, Any]:
        """Raises UserError for anything but a map in openpi's form."""
        try:
            if isinstance(message, str):
                raise protocol.MessageError(f"it sent text first: {reason(message)}")
            return protocol.unpack_of_server(message)
        except protocol.MessageError as error:
            raise UserError(f"{self._config.url} does not speak openpi's protocol: {error}") from None

    def _chunk(self, reply: str | bytes) -> ActionChunk:
        """The first actions of an answer."""
        url = self._config.url
        if isinstance(reply, str):
            raise UserError(f"{url} could not answer: {reason(reply)}")
        actions = self._unpack(reply).get(protocol.ACTIONS)
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != self._body.action_dim:
            got = protocol.describe(actions)
            wanted = f"[K, {self._body.action_dim}]"
            raise UserError(f"{url} answered with {got} as actions, not {wanted}: serve a policy for this robot")
        if not np.isfinite(actions).all():
            raise UserError(f"{url} answered with actions that are not finite: its checkpoint or statistics are broken")
        if len(actions) < self._execute:
            raise UserError(f"--execute {self._execute}: {url} answers with {len(actions)} actions")
        return ActionChunk(np.clip(actions[: self._execute], -1, 1).astype(np.float32))


def _token(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"--token-file: {path} does not exist; give the file that holds the server's token")
    return path.read_text().strip()


def _refuse_if_too_big(error: ConnectionClosed, url: str) -> None:
    """Raises UserError if the connection was closed over a message's size: the same would happen again."""
    first = error.rcvd if error.rcvd_then_sent else error.sent or error.rcvd
    if first is None or first.code != CloseCode.MESSAGE_TOO_BIG:
        return
    if first is error.rcvd:
        raise UserError(
            f"{url} takes no message as long as an observation, with two images of {IMAGE_SIZE} pixels; "
            "raise its limit (max_size of its websocket)"
        )
    raise UserError(
        f"{url} sent more than {protocol.MAX_MESSAGE // 2**20} MiB in one message, the most that is taken; "
        "make it answer with actions alone"
    )


def reason(text: str) -> str:
    """One line of a server's error. Of a traceback: the last exception's type, and how its message begins."""
    lines = text.splitlines()
    headers = [number for number, line in enumerate(lines) if "Traceback" in line and line.endswith(":")]
    if headers:
        # In a group of exceptions, what stands before a header stands before each line of its traceback.
        lead = lines[headers[-1]].partition("Traceback")[0]
        below = [line.removeprefix(lead) for line in lines[headers[-1] + 1 :]]
        lines = list(itertools.dropwhile(lambda line: not line[:1].strip(), below)) or lines[-1:]
    lines = [line.strip() for line in lines if line.strip()] or ["no reason given"]
    # Some messages begin on the line after their exception's type, or with a heading.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:LONGEST_REASON]


def resize_with_pad(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [size, size, 3]: bilinear, antialiased, shape kept, black margins, as openpi's client does."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(height, width) / size
    inner = Image.fromarray(image).resize((int(width / ratio), int(height / ratio)), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (size, size))
    padded.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(padded)
