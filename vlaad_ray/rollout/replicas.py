"""Policies too large for one copy an environment, or on a GPU: a few replicas on Ray actors answer batches of many
environments.

Each environment is a client of one replica and has one request in flight, which bounds all queues by the number of
environments. A replica collects requests while its model is busy (`batcher.Batcher`) and starts the next batch by
`batching.Rhythm`.

A replica that dies or hangs is restarted by Ray, with the requests that it had. Past its restarts the run stops.

Batching does not change what an episode contains, as far as the policy keeps its promise (types.BatchPolicy): an answer
depends on its own observation alone. Models keep it up to the rounding of sums that are ordered by batch size; so
episodes of a batched policy repeat in distribution, not to the last bit.

Why not Ray Serve: `@serve.batch` starts a batch when it is full or a set time is over. That time is waited out in vain
when nobody else is coming, and requests that come further apart than it fall into batches of one: two environments
whose thinking times vary by half then get 0.62 of the ideal, here 0.96 (docs/experiments.md). What else is needed,
restarts and retries, Ray's actors have, without proxies and a controller.
"""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from vlaad_ray.configs import WAIT_FOR_NODES_S, ServingConfig, UserError, check_bounds
from vlaad_ray.runtime import cluster
from vlaad_ray.runtime.nodes import fitted
from vlaad_ray.runtime.placement import Processes, divide
from vlaad_ray.serving.batcher import Batcher
from vlaad_ray.serving.rhythm import Rhythm
from vlaad_ray.types import ActionChunk, BatchPolicy, LocalPolicy, Observation, Policy, SharedPolicy

MAX_RESTARTS = 3
"""Times that Ray brings a dead replica back."""
MAX_RESENDS = 2
"""Times that a request is sent again because its replica died over it; then its episode starts anew."""
MAX_CLIENTS = 1024
"""Requests a replica takes in at once; more wait in Ray's queue."""
INLINE = ("RAY_max_direct_call_object_size", 2**20)
"""Ray's setting, and the bytes up to which it then sends an argument with its call, by default 100 KiB. A request with
two images of 256 pixels took 0.7 ms, through the object store 1.1 ms, on two cores."""


class PolicyUnavailable(RuntimeError):
    """The policy went away in mid-episode. The episode says nothing about it and can be run again."""


Question = tuple[str, bytes, Mapping[str, np.ndarray]]
"""An observation as it travels: instruction, proprioception, images. Small arrays cost Ray more than their bytes do."""
Answer = tuple[int, bytes, str | None, bytes | None, bytes | None]
"""A chunk as it travels: its length K, then actions, phase, closing and spread, arrays in float32."""


def question(observation: Observation) -> Question:
    return observation.instruction, observation.proprio.astype(np.float32).tobytes(), observation.images


def pack(chunk: ActionChunk) -> Answer:
    def as_bytes(array: np.ndarray | None) -> bytes | None:
        return None if array is None else array.astype(np.float32).tobytes()

    actions = chunk.actions.astype(np.float32).tobytes()
    return len(chunk.actions), actions, chunk.phase, as_bytes(chunk.closing), as_bytes(chunk.spread)


def unpack(answer: Answer) -> ActionChunk:
    steps, actions, phase, closing, spread = answer
    return ActionChunk(
        np.frombuffer(actions, np.float32).reshape(steps, -1),
        phase,
        None if closing is None else np.frombuffer(closing, np.float32),
        None if spread is None else np.frombuffer(spread, np.float32).reshape(steps, -1),
    )


class Replica:
    """One copy of a shared policy, in an async actor."""

    def __init__(
        self, load: Callable[[str], BatchPolicy], device: str, config: ServingConfig, rhythm: Rhythm | None = None
    ):
        """`rhythm`: another rule to start batches by than its own."""
        self._load, self._device, self._config = load, device, config
        self._rhythm = rhythm or Rhythm(config.max_batch, config.max_wait_ms / 1000)
        self._thread = ThreadPoolExecutor(1)
        self._loading: asyncio.Future[BatchPolicy] | None = None
        self._batcher: Batcher | None = None
        self._seats = 0

    async def ready(self) -> bool:
        """Load the policy, once; whether it needs images."""
        return (await self._policy()).needs_images

    async def next_seat(self) -> int:
        """0, 1, 2 …: by these numbers clients are dealt out among the replicas."""
        self._seats += 1
        return self._seats - 1

    async def infer(self, client: str, question: Question) -> Answer:
        """The answer to one client, after the batch that it came to be in."""
        policy = await self._policy()  # a restarted replica loads again
        if self._batcher is None:
            config = self._config
            self._batcher = Batcher(
                policy.infer_batch, config.max_batch, self._rhythm, self._thread, config.batch_timeout_s
            )
        instruction, proprio, images = question
        observation = Observation(instruction, np.frombuffer(proprio, np.float32), images)
        return pack(await self._batcher.infer(client, observation))

    async def _policy(self) -> BatchPolicy:
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load, self._device)
        return await self._loading


class ServedPolicy:
    """A client of one replica, behind the interface of a policy."""

    def __init__(self, replica: Any, needs_images: bool, policy: SharedPolicy):
        self.needs_images = needs_images
        self._replica, self._prepare, self._execute = replica, policy.prepare, policy.execute
        self._client = uuid.uuid4().hex

    def reset(self, instruction: str) -> None:
        """Nothing to do: the policy has no memory, and every observation brings its instruction."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Raises PolicyUnavailable when the replica died over the request, UserError when it is dead for good."""
        prepared = question(self._prepare(observation))
        chunk = unpack(answered(self._replica.infer.remote(self._client, prepared)))
        if self._execute is None:
            return chunk
        if len(chunk.actions) < self._execute:
            raise UserError(f"--execute {self._execute}: the teacher answers with {len(chunk.actions)} actions")
        return chunk.first(self._execute)


@contextmanager
def placed(
    policy: LocalPolicy | SharedPolicy,
    config: ServingConfig,
    rhythm: Rhythm | None = None,
    wait_for_nodes_s: float = WAIT_FOR_NODES_S,
) -> Iterator[Callable[[Any], Policy]]:
    """Yield what makes the policy of one environment, in that environment's process.

    A shared policy's replicas are up and loaded by then, and go when the block ends. `rhythm`: another rule to start
    batches by, to compare with (bench/teacher.py). Raises UserError for replicas that fit no node, even with waiting
    (runtime.nodes).
    """
    if isinstance(policy, LocalPolicy):
        yield policy.make
        return
    check_bounds(config)
    os.environ.setdefault(INLINE[0], str(INLINE[1]))  # read by a Ray that starts here
    cluster.connect()
    wanted = processes(config)
    fitted(lambda nodes: divide(nodes, wanted), wanted, wait_for_nodes_s)
    actor = ray.remote(Replica).options(
        num_cpus=config.cpus_per_replica,
        num_gpus=config.gpus_per_replica,
        max_concurrency=MAX_CLIENTS,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESENDS,
    )
    device = "cuda" if config.gpus_per_replica > 0 else "cpu"
    replicas: list[Any] = [actor.remote(policy.load, device, config, rhythm) for _ in range(copies(config))]
    with ExitStack() as after:
        for replica in replicas:
            after.callback(ray.kill, replica)
        yield functools.partial(join, replicas, wait_until_loaded(replicas), policy)


def wait_until_loaded(replicas: list[Any]) -> bool:
    """Whether the policy needs images. Raises what loading raised."""
    loading = [replica.ready.remote() for replica in replicas]
    return all([answered(reference) for reference in loading])  # they say the same


def answered(reference: Any) -> Any:
    """What a replica's method returns. Raises what it raised; PolicyUnavailable when the replica died over it and Ray
    brings it back, UserError when it is past its restarts.
    """
    try:
        return cluster.get(reference)
    except ActorUnavailableError as error:
        raise PolicyUnavailable(str(error).splitlines()[0]) from error
    except ActorDiedError as error:
        raise UserError(
            f"a replica of the policy died more than {MAX_RESTARTS} times ({str(error).splitlines()[0]}); its log is "
            "in Ray's session directory; if memory ran out, lower --max-batch; then rerun the same command"
        ) from error


def join(replicas: list[Any], needs_images: bool, policy: SharedPolicy, _: Any) -> Policy:
    """In an environment's process: become a client of the next replica in turn."""
    seat = ray.get(replicas[0].next_seat.remote())
    return policy.wrap(ServedPolicy(replicas[seat % len(replicas)], needs_images, policy))


def copies(config: ServingConfig) -> int:
    """Replicas of a shared policy."""
    return max(1, config.replicas)


def processes(config: ServingConfig) -> Processes:
    """What the replicas ask of the nodes."""
    return Processes("replica", copies(config), config.cpus_per_replica, config.gpus_per_replica)
