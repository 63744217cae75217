"""Many episodes over Ray actors: each actor owns one simulator and one policy; the driver deals out episodes.

Collection and evaluation differ in the policy they make and in what
they do with a finished episode; both are plain functions here.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from vlaad_ray.configs import FleetConfig, ServingConfig, UserError
from vlaad_ray.envs import Env, SimulatorError
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.rollout.replicas import PolicyUnavailable, placed, processes
from vlaad_ray.runtime import cluster
from vlaad_ray.runtime.cli import console
from vlaad_ray.runtime.nodes import fitted
from vlaad_ray.runtime.placement import Node, NoRoom, Processes, check, divide, total_room, without
from vlaad_ray.types import Episode, LocalPolicy, Policy, SharedPolicy, Trained

MakeTask = Callable[[int], Env]
"""Task of the suite -> its environment. Pickled by reference: workers import the module that it is a function of."""
MakePolicy = Callable[[Any], Policy]
"""The environment in which it will act -> a policy."""
Finish = Callable[[Episode], Any]
"""Runs on the actor with the finished episode: stores what must stay, returns a small record for the driver."""


@dataclass(frozen=True)
class FleetReport:
    outcomes: dict[str, Any]
    """Episode name -> what `finish` returned."""
    retried: int
    """Times that a simulator died, diverged, got stuck or lost its teacher and was replaced."""
    lost: tuple[str, ...]
    """Names of episodes given up after max_retries."""
    steps: int
    """Control steps simulated, retries not counted."""
    seconds: float


class EpisodeWorker:
    """Runs episodes one after another, keeping the simulator of the last task."""

    def __init__(self, make_env: MakeTask, make_policy: MakePolicy, finish: Finish):
        self._make_env, self._make_policy, self._finish = make_env, make_policy, finish
        self._task: int | None = None
        self._env: Env | None = None
        self._policy: Policy | None = None

    def ready(self) -> None:
        """Returns once the actor has its resources and its process runs."""

    def run(self, spec: EpisodeSpec) -> tuple[Any, int]:
        """What `finish` returned, and how many control steps the episode has."""
        if self._task != spec.key.task:
            if self._env is not None:
                self._env.close()
            self._task, self._env = spec.key.task, self._make_env(spec.key.task)
            self._policy = self._make_policy(self._env)
        assert self._env is not None and self._policy is not None
        episode = run_episode(self._env, self._policy, spec)
        return self._finish(episode), len(episode)


@dataclass(eq=False)
class _Seat:
    """An actor and what it is doing: coming up (spec None), running an episode, or idle (no reference)."""

    actor: Any
    reference: Any
    stillborn: int = 0
    """Actors that died in this seat, one after the other, before they were up."""
    spec: EpisodeSpec | None = None
    task: int | None = None
    since: float = 0.0


def run_policy(
    specs: Sequence[EpisodeSpec],
    make_env: MakeTask,
    policy: LocalPolicy | SharedPolicy,
    finish: Finish,
    config: FleetConfig,
    serving: ServingConfig,
    on_outcome: Callable[[EpisodeSpec, Any], None],
) -> FleetReport:
    """`run_fleet` with the policy where it belongs: in every simulator's process, or in replicas for all of them."""
    if not specs:
        return FleetReport({}, retried=0, lost=(), steps=0, seconds=0.0)
    replicas = processes(serving) if isinstance(policy, SharedPolicy) else None
    with placed(policy, serving, wait_for_nodes_s=config.wait_for_nodes_s) as make_policy:
        return run_fleet(specs, make_env, make_policy, finish, config, on_outcome, replicas)


def check_images(policy: LocalPolicy | SharedPolicy, shown: Trained) -> list[str]:
    """Warnings about images unlike those that the policy learnt from; UserError for another size."""
    trained = policy.trained
    if trained.image_size and shown.image_size and trained.image_size != shown.image_size:
        raise UserError(
            f"{policy.name} learnt from images of {trained.image_size} pixels, not {shown.image_size}: "
            f"add --image-size {trained.image_size}"
        )
    if trained.look is not None and shown.look is not None and trained.look != shown.look:
        return [f"{policy.name} learnt from {trained.render!r} images and gets {shown.render!r} ones (--render)"]
    return []


def run_fleet(
    specs: Sequence[EpisodeSpec],
    make_env: MakeTask,
    make_policy: MakePolicy,
    finish: Finish,
    config: FleetConfig,
    on_outcome: Callable[[EpisodeSpec, Any], None],
    replicas: Processes | None = None,
) -> FleetReport:
    """Run every episode of a suite once, in any order, over `config.actors` actors, beside the `replicas` they ask.

    An actor keeps to one task while that has episodes left (building a simulator takes seconds), then helps with the
    task that has most left. A simulator that dies, diverges, gets stuck or loses its teacher is replaced and its
    episode retried. Any other exception is a bug or a wrong setting and stops the run.
    """
    if not specs:
        return FleetReport({}, retried=0, lost=(), steps=0, seconds=0.0)
    cluster.connect()
    start = time.monotonic()
    queues: dict[int, deque[EpisodeSpec]] = defaultdict(deque)
    for spec in specs:
        queues[spec.key.task].append(spec)
    tries: dict[str, int] = defaultdict(int)
    outcomes: dict[str, Any] = {}
    lost: list[str] = []
    retried = steps = 0

    remote_worker = ray.remote(EpisodeWorker).options(
        num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=0
    )

    def hire(stillborn: int = 0) -> _Seat:
        actor: Any = remote_worker.remote(make_env, make_policy, finish)
        return _Seat(actor, actor.ready.remote(), stillborn)

    def hire_again(seat: _Seat, why: str) -> None:
        """Put a new actor into the place of one that died before it was up, unless that is what they all do there."""
        nonlocal retried
        seats.remove(seat)
        if seat.stillborn < config.max_retries:
            console.print(f"simulator replaced while starting: {why}")
            retried += 1
            seats.append(hire(seat.stillborn + 1))
        elif seats:
            console.print(f"one simulator less: {seat.stillborn + 1} in a row died while starting: {why}")
        else:
            raise UserError(
                f"simulators keep dying while they start, the last {seat.stillborn + 1} times in a row: {why}; "
                "mend that (memory, the node) and rerun the same command"
            )

    def give_up(seat: _Seat, spec: EpisodeSpec, why: str) -> None:
        """Put a new actor into the seat and queue its episode again, unless it has had its tries."""
        nonlocal retried
        console.print(f"simulator replaced while running {spec.key.name}: {why}")
        ray.kill(seat.actor)
        seats[seats.index(seat)] = hire()
        tries[spec.key.name] += 1
        if tries[spec.key.name] > config.max_retries:
            lost.append(spec.key.name)
        else:
            retried += 1
            queues[spec.key.task].append(spec)

    seats = [hire() for _ in range(min(actor_count(config, replicas), len(specs)))]
    while any(queues.values()) or any(seat.spec for seat in seats):
        for seat in seats:
            if seat.reference is None and (task := _choose_task(seat, seats, queues)) is not None:
                next_spec = queues[task].popleft()
                seat.spec, seat.task, seat.since = next_spec, task, time.monotonic()
                seat.reference = seat.actor.run.remote(next_spec)
        pending = {seat.reference: seat for seat in seats if seat.reference is not None}
        ready, _ = ray.wait(list(pending), timeout=1.0)
        for reference in ready:
            seat = pending[reference]
            ended = seat.spec
            seat.spec = seat.reference = None
            try:
                answer = ray.get(reference)
            except RayActorError as error:
                if error.actor_init_failed:  # by an exception: a bug
                    raise
                if ended is None:
                    hire_again(seat, cluster.cause_of_death(error))
                else:
                    give_up(seat, ended, cluster.cause_of_death(error))
                continue
            except RayTaskError as error:
                if ended is None or not isinstance(error.cause, SimulatorError | PolicyUnavailable):
                    raise error.cause from error
                give_up(seat, ended, str(error.cause))
                continue
            seat.stillborn = 0
            if ended is not None:
                outcomes[ended.key.name], length = answer
                steps += length
                on_outcome(ended, outcomes[ended.key.name])
        for seat in list(seats):
            if seat.spec is not None and time.monotonic() - seat.since > config.episode_timeout_s:
                give_up(seat, seat.spec, f"stuck for over {config.episode_timeout_s:.0f} s")
    for seat in seats:
        ray.kill(seat.actor)
    return FleetReport(outcomes, retried, tuple(lost), steps, time.monotonic() - start)


def actor_count(config: FleetConfig, replicas: Processes | None = None) -> int:
    """How many actors there will be, beside the teacher's `replicas`.

    Waits for nodes, or raises UserError, when not one fits (runtime.nodes).
    """
    one = Processes("actor", 1, config.cpus_per_actor, config.gpus_per_actor)
    return fitted(lambda nodes: count_actors(config, nodes, replicas), one, config.wait_for_nodes_s)


def count_actors(config: FleetConfig, nodes: Sequence[Node], replicas: Processes | None = None) -> int:
    """As many as configured (those that don't fit yet wait for others to end), or as the nodes hold. Raises NoRoom."""
    wanted = Processes("actor", config.actors, config.cpus_per_actor, config.gpus_per_actor)
    check(wanted)
    if replicas is not None:
        left = without(nodes, replicas)
        if total_room(nodes, wanted) and not total_room(left, wanted):
            raise NoRoom("the teacher's replicas leave no room for an actor", "lower --replicas or --cpus-per-replica")
        nodes = left
    held = divide(nodes, replace(wanted, count=min(config.actors, 1))).count
    return config.actors or held


def _choose_task(seat: _Seat, seats: Sequence[_Seat], queues: dict[int, deque[EpisodeSpec]]) -> int | None:
    if seat.task is not None and queues[seat.task]:
        return seat.task
    open_tasks = [task for task, queue in queues.items() if queue]

    def left_per_actor(task: int) -> float:
        return len(queues[task]) / (1 + sum(other.task == task for other in seats if other is not seat))

    return max(open_tasks, key=left_per_actor, default=None)
