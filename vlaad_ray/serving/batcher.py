"""Requests of many clients, answered in batches: an event loop collects, a thread computes, a Rhythm says when.

Each client has one request in flight. Requests that come while the thread computes wait for the next batch.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass

from vlaad_ray.serving.rhythm import Rhythm
from vlaad_ray.types import ActionChunk, Observation

BAD_OBSERVATION = (ValueError, FloatingPointError)
"""What a policy raises over one observation. Anything else, memory that runs out say, concerns the whole batch."""


@dataclass(frozen=True)
class Request:
    client: str
    observation: Observation
    answer: asyncio.Future[ActionChunk]


class Batcher:
    """Lives in one event loop, which must run when it is made."""

    def __init__(
        self,
        infer_batch: Callable[[Sequence[Observation]], list[ActionChunk]],
        max_batch: int,
        rhythm: Rhythm,
        thread: Executor,
        timeout_s: float | None = None,
    ):
        """`thread`: an executor of one thread, in which batches are computed. `timeout_s`: a slower batch hangs.

        A batch that hangs ends the process, since a thread can't be stopped; so does a bug in here, after which nobody
        would be answered any more. Whoever supervises the process starts it again.
        """
        self._infer_batch, self._max_batch, self._rhythm = infer_batch, max_batch, rhythm
        self._thread, self._timeout_s = thread, timeout_s
        self.batches = 0
        """Begun so far; those of one that are a second try not counted."""
        self._waiting: list[Request] = []
        self._arrival = asyncio.Event()
        self._loop = asyncio.create_task(self._run())
        self._loop.add_done_callback(_end_process_after_a_bug)

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken up yet."""
        return len(self._waiting)

    async def infer(self, client: str, observation: Observation) -> ActionChunk:
        """The answer to one client, after the batch that it came to be in. Raises what the policy raised over it."""
        answer: asyncio.Future[ActionChunk] = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(client, observation, answer))
        self._rhythm.arrived(client, time.monotonic())
        self._arrival.set()
        return await answer

    def leave(self, client: str) -> None:
        """A client that will not come back."""
        self._rhythm.left(client)

    async def close(self) -> None:
        """Stop. Whoever still waits is never answered."""
        self._loop.cancel()
        await asyncio.wait([self._loop])

    async def _run(self) -> None:
        """Batch after batch."""
        while True:
            self._arrival.clear()
            if not self._waiting:
                await self._arrival.wait()
            elif (hold := self._rhythm.hold(time.monotonic())) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrival.wait(), hold)
            else:
                batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
                await self._answer(batch)

    async def _answer(self, batch: list[Request]) -> None:
        """Run one batch and tell each client its part."""
        clients = [request.client for request in batch]
        self._rhythm.started(clients)
        self.batches += 1
        start = time.monotonic()
        results = await self._compute([request.observation for request in batch])
        for request, result in zip(batch, results, strict=True):
            if request.answer.done():  # nobody waits for it any more
                continue
            if isinstance(result, BaseException):
                request.answer.set_exception(result)
            else:
                request.answer.set_result(result)
        end = time.monotonic()
        self._rhythm.finished(clients, end - start, end)

    async def _compute(self, observations: list[Observation]) -> list[ActionChunk | BaseException]:
        """An answer or the policy's exception for each. What the policy fails over must not harm its neighbours."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._infer_batch, observations)
        finished, _ = await asyncio.wait([work], timeout=self._timeout_s)
        if not finished:
            print(f"a batch of {len(observations)} hung for {self._timeout_s:.0f} s", flush=True)
            os._exit(1)
        error = work.exception()
        if isinstance(error, BAD_OBSERVATION) and len(observations) > 1:
            return [(await self._compute([observation]))[0] for observation in observations]
        if error is None and len(work.result()) != len(observations):
            error = ValueError(f"the policy gave {len(work.result())} answers to {len(observations)} observations")
        return [error] * len(observations) if error is not None else list(work.result())


def _end_process_after_a_bug(loop: asyncio.Task[None]) -> None:
    if not loop.cancelled():
        traceback.print_exception(loop.exception())
        os._exit(1)
