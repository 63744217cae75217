"""One client's conversation with a policy server, whatever carries its messages (server.py, and serve.py on Ray)."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np

from vlaad_ray.deploy.metrics import Counts
from vlaad_ray.deploy.shaping import Shaping
from vlaad_ray.serving import protocol
from vlaad_ray.serving.batcher import BAD_OBSERVATION, Batcher
from vlaad_ray.types import ACTION_DIM, BatchPolicy

log = logging.getLogger(__name__)

Send = Callable[[str | bytes], Awaitable[None]]


class ServablePolicy(BatchPolicy, Protocol):
    cameras: Sequence[str]
    """Those whose images must come with each request."""


class Session:
    """What is a client's own: its Shaping, and the instruction it is for. Nothing else is kept between requests."""

    def __init__(self, name: object, batcher: Batcher, cameras: Sequence[str], shaping: Shaping, counts: Counts):
        """`name`: for the log. `shaping`: a new one."""
        self._name, self._batcher, self._cameras, self._counts = name, batcher, cameras, counts
        self._shaping = shaping
        self._client, self._instruction = uuid.uuid4().hex, ""
        self._refused = 0
        self._began = self._previous = 0.0

    async def reply(self, message: str | bytes) -> str | bytes:
        """What to send back: the answer, or as text one line on what is wrong, after which the client may ask again.

        Other exceptions than BAD_OBSERVATION are bugs or a lack of memory, and propagate: the connection breaks.
        """
        self._began = time.monotonic()
        try:
            if isinstance(message, str):
                raise protocol.MessageError("expected a binary message, got text")
            observation = protocol.unpack_observation(protocol.unpack(message), self._cameras)
            chunk = await self._batcher.infer(self._client, observation)
            check_actions(chunk.actions)
        except protocol.MessageError as error:
            if not self._refused:  # once a client, so that nobody can flood the log
                log.warning("refused a message of %s: %s", self._name, error)
            self._refused += 1
            self._counts.refused += 1
            return str(error)
        except BAD_OBSERVATION as error:
            log.error("could not answer %s: %s", self._name, error)
            self._counts.failed += 1
            return str(error)
        if observation.instruction != self._instruction:
            self._shaping.reset()
            self._instruction = observation.instruction
        actions = self._shaping.apply(observation, chunk).actions
        seconds = time.monotonic() - self._began
        self._counts.answer(seconds)
        timing = {"infer_ms": 1000 * seconds}
        if self._previous:
            timing["prev_total_ms"] = 1000 * self._previous
        return protocol.pack({protocol.ACTIONS: actions, "server_timing": timing})

    async def converse(self, metadata: bytes, messages: AsyncIterator[str | bytes], send: Send) -> None:
        """Send the `metadata`, then answer every message until the client goes."""
        await send(metadata)
        async for message in messages:
            await send(await self.reply(message))
            # So long the whole took: the next answer tells it, as openpi's does.
            self._previous = time.monotonic() - self._began

    def close(self) -> None:
        """The client has gone."""
        self._batcher.leave(self._client)
        if self._refused > 1:
            log.warning("refused %d messages of %s", self._refused, self._name)


def check_actions(actions: np.ndarray) -> None:
    """Raises ValueError for anything but [K, 7] finite numbers in [-1, 1]."""
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
        raise ValueError(f"the policy answered with {protocol.describe(actions)}, not [K, {ACTION_DIM}] actions")
    if not np.isfinite(actions).all() or np.abs(actions).max(initial=0) > 1:
        raise ValueError("the policy answered with actions that are not finite numbers in [-1, 1]")
