"""Many episodes over Ray actors: each actor owns one simulator and one policy; the driver deals out episodes.

Collection and evaluation differ in the policy they make and in what
they do with a finished episode; both are plain functions here.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from vlaad_ray.configs import DaggerConfig, FleetConfig, ServingConfig, UserError
from vlaad_ray.envs import Env, SimulatorError
from vlaad_ray.rollout.dagger import guided
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

    def __init__(self, make_env: MakeTask, make_policy: MakePolicy):
        self._make_env, self._make_policy = make_env, make_policy
        self._task: int | None = None
        self._env: Env | None = None
        self._policy: Policy | None = None

    def ready(self) -> None:
        """Returns once the actor has its resources and its process runs."""

    def run(self, spec: EpisodeSpec, finish: Finish) -> tuple[Any, int]:
        """What `finish` returned, and how many control steps the episode has."""
        if self._task != spec.key.task:
            if self._env is not None:
                self._env.close()
            self._task, self._env = spec.key.task, self._make_env(spec.key.task)
            self._policy = self._make_policy(self._env)
        assert self._env is not None and self._policy is not None
        episode = run_episode(self._env, self._policy, spec)
        return finish(episode), len(episode)


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


@dataclass(frozen=True)
class Pupil:
    """A student that acts before its teacher, or beside it (rollout.dagger)."""

    policy: LocalPolicy | SharedPolicy
    serving: ServingConfig
    config: DaggerConfig
    budget: int
    """Of an episode; 0: the suite's own."""


@contextmanager
def fleet_of(
    make_env: MakeTask,
    policy: LocalPolicy | SharedPolicy,
    config: FleetConfig,
    serving: ServingConfig,
    pupil: Pupil | None = None,
) -> Iterator[Fleet]:
    """A fleet with the policy where it belongs: in every simulator's process, or in replicas for all of them.

    `pupil`: a student whom the policy teaches in the same episodes.
    """
    policies = [(policy, serving)] + ([(pupil.policy, pupil.serving)] if pupil is not None else [])
    replicas = [processes(serving) for policy, serving in policies if isinstance(policy, SharedPolicy)]
    with ExitStack() as placement:

        def make_policy() -> MakePolicy:
            wait = config.wait_for_nodes_s
            make, *others = [placement.enter_context(placed(*each, wait_for_nodes_s=wait)) for each in policies]
            if pupil is None:
                return make
            return functools.partial(guided, make, others[0], pupil.config, pupil.budget)

        with Fleet(make_env, make_policy, config, replicas) as fleet:
            yield fleet


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


class Fleet:
    """Actors, hired for the first episodes and kept for further ones until the `with` block ends."""

    def __init__(
        self,
        make_env: MakeTask,
        make_policy: Callable[[], MakePolicy],
        config: FleetConfig,
        replicas: Sequence[Processes] = (),
    ):
        """`make_policy`: called for a first episode. `replicas`: what policies compute in, beside the actors."""
        self._make_env, self._place, self._config, self._replicas = make_env, make_policy, config, replicas
        self._make_policy: MakePolicy | None = None
        self._seats: list[_Seat] = []
        self._worker: Any = ray.remote(EpisodeWorker).options(
            num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=0
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            ray.kill(seat.actor)

    def run(
        self, specs: Sequence[EpisodeSpec], finish: Finish, on_outcome: Callable[[EpisodeSpec, Any], None]
    ) -> FleetReport:
        """Run every episode once, in any order.

        An actor keeps to one task while that has episodes left (building a simulator takes seconds), then helps with
        the task that has most left. A simulator that dies, diverges, gets stuck or loses its teacher is replaced and
        its episode retried. Any other exception is a bug or a wrong setting and stops the run.
        """
        if not specs:
            return FleetReport({}, retried=0, lost=(), steps=0, seconds=0.0)
        cluster.connect()
        start = time.monotonic()
        if self._make_policy is None:
            self._make_policy = self._place()
        work = _Work(specs, ray.put(finish), self._config)
        wanted = min(actor_count(self._config, self._replicas), len(specs))
        self._seats += [self._hire() for _ in range(wanted - len(self._seats))]
        while work.left or any(seat.spec for seat in self._seats):
            self._deal_out(work)
            pending = {seat.reference: seat for seat in self._seats if seat.reference is not None}
            ready, _ = ray.wait(list(pending), timeout=1.0)
            for reference in ready:
                seat = pending[reference]
                if (ended := self._collect(seat, reference, work)) is not None:
                    spec, (work.outcomes[spec.key.name], length) = ended
                    work.steps += length
                    on_outcome(spec, work.outcomes[spec.key.name])
            for seat in list(self._seats):
                if seat.spec is not None and time.monotonic() - seat.since > self._config.episode_timeout_s:
                    self._give_up(seat, seat.spec, f"stuck for over {self._config.episode_timeout_s:.0f} s", work)
        return FleetReport(work.outcomes, work.retried, tuple(work.lost), work.steps, time.monotonic() - start)

    def _deal_out(self, work: _Work) -> None:
        for seat in self._seats:
            if seat.reference is None and (task := _choose_task(seat, self._seats, work.queues)) is not None:
                seat.spec, seat.task, seat.since = work.queues[task].popleft(), task, time.monotonic()
                seat.reference = seat.actor.run.remote(seat.spec, work.finish)

    def _collect(self, seat: _Seat, reference: Any, work: _Work) -> tuple[EpisodeSpec, tuple[Any, int]] | None:
        """What an actor answers: the episode that it ended with; None when it has come up, or another replaced it."""
        spec = seat.spec
        seat.spec = seat.reference = None
        try:
            answer = cluster.get(reference)
        except RayActorError as error:
            if error.actor_init_failed:  # by an exception: a bug
                raise
            if spec is None:
                self._hire_again(seat, cluster.cause_of_death(error), work)
            else:
                self._give_up(seat, spec, cluster.cause_of_death(error), work)
            return None
        except (SimulatorError, PolicyUnavailable) as error:
            if spec is None:
                raise
            self._give_up(seat, spec, str(error), work)
            return None
        seat.stillborn = 0
        return None if spec is None else (spec, answer)

    def _hire(self, stillborn: int = 0) -> _Seat:
        actor = self._worker.remote(self._make_env, self._make_policy)
        return _Seat(actor, actor.ready.remote(), stillborn)

    def _hire_again(self, seat: _Seat, why: str, work: _Work) -> None:
        """Put a new actor into the place of one that died before it was up, unless that is what they all do there."""
        self._seats.remove(seat)
        if seat.stillborn < self._config.max_retries:
            console.print(f"simulator replaced while starting: {why}")
            work.retried += 1
            self._seats.append(self._hire(seat.stillborn + 1))
        elif self._seats:
            console.print(f"one simulator less: {seat.stillborn + 1} in a row died while starting: {why}")
        else:
            raise UserError(
                f"simulators keep dying while they start, the last {seat.stillborn + 1} times in a row: {why}; "
                "mend that (memory, the node) and rerun the same command"
            )

    def _give_up(self, seat: _Seat, spec: EpisodeSpec, why: str, work: _Work) -> None:
        """Put a new actor into the seat and queue its episode again, unless it has had its tries."""
        console.print(f"simulator replaced while running {spec.key.name}: {why}")
        ray.kill(seat.actor)
        self._seats[self._seats.index(seat)] = self._hire()
        work.try_again(spec)


class _Work:
    """The episodes of one run, and what became of them."""

    def __init__(self, specs: Sequence[EpisodeSpec], finish: Any, config: FleetConfig):
        """`finish`: Ray's reference to a Finish."""
        self.finish, self._max_retries = finish, config.max_retries
        self.queues: dict[int, deque[EpisodeSpec]] = defaultdict(deque)
        for spec in specs:
            self.queues[spec.key.task].append(spec)
        self._tries: dict[str, int] = defaultdict(int)
        self.outcomes: dict[str, Any] = {}
        self.lost: list[str] = []
        self.retried = self.steps = 0

    @property
    def left(self) -> bool:
        return any(self.queues.values())

    def try_again(self, spec: EpisodeSpec) -> None:
        self._tries[spec.key.name] += 1
        if self._tries[spec.key.name] > self._max_retries:
            self.lost.append(spec.key.name)
        else:
            self.retried += 1
            self.queues[spec.key.task].append(spec)


def run_fleet(
    specs: Sequence[EpisodeSpec],
    make_env: MakeTask,
    make_policy: MakePolicy,
    finish: Finish,
    config: FleetConfig,
    on_outcome: Callable[[EpisodeSpec, Any], None],
) -> FleetReport:
    """Run every episode of a suite once, by a fleet for them alone, each actor with a policy of its own."""
    with Fleet(make_env, lambda: make_policy, config) as fleet:
        return fleet.run(specs, finish, on_outcome)


def actor_count(config: FleetConfig, replicas: Sequence[Processes] = ()) -> int:
    """How many actors there will be, beside the policies' `replicas`.

    Waits for nodes, or raises UserError, when not one fits (runtime.nodes).
    """
    one = Processes("actor", 1, config.cpus_per_actor, config.gpus_per_actor)
    return fitted(lambda nodes: count_actors(config, nodes, replicas), one, config.wait_for_nodes_s)


def count_actors(config: FleetConfig, nodes: Sequence[Node], replicas: Sequence[Processes] = ()) -> int:
    """As many as configured (those that don't fit yet wait for others to end), or as the nodes hold. Raises NoRoom."""
    wanted = Processes("actor", config.actors, config.cpus_per_actor, config.gpus_per_actor)
    check(wanted)
    left = functools.reduce(without, replicas, nodes)
    if total_room(nodes, wanted) and not total_room(left, wanted):
        raise NoRoom("the policy's replicas leave no room for an actor", "lower --replicas or --cpus-per-replica")
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
