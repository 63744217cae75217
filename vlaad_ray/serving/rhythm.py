"""When a policy that answers batches should start the next one: pure bookkeeping, no threads and no clock of its own.

The clients are environments: each waits for its answer, thinks (simulates and renders) for a while, then asks again. A
batch of b costs about fixed + item * b seconds. Starting whenever something waits, as a queue would, is far from best:
two environments then take turns in batches of one. Waiting a set time is not either: it is wasted whenever nobody is
about to come. So the rhythm is learnt: how long each client thinks, and what a batch costs.

- *Aim.* With n clients that think z seconds, in g groups that take turns, a round takes the longer of what the machine
  needs (g * fixed + n * item) and what a client does (z + fixed + item * n/g). The g of the shortest round gives the
  size to wait for, n/g. bench/teacher.py holds it against a bound on all schedules (`ideal_throughput`).
- *Patience.* Short of that size, a batch that starts now costs fixed / k for each of k requests; one that waits w
  seconds for j more costs (w + fixed) / (k + j). The cheapest of these decides, so one straggler holds nobody up. In
  all a batch is never held for longer than a batch of its own would cost the late ones: what is lost by guessing wrong
  is at most as much again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TICK = 0.002
"""Seconds within which arrivals count as simultaneous: what scheduling blurs anyway."""
FORGET = 60.0
"""Seconds after which a client that has not come back is forgotten."""


class Rhythm:
    """Decides for one machine. Times are seconds of any monotonic clock, passed in by the caller."""

    def __init__(self, max_batch: int, max_wait: float):
        """`max_wait`: longest that requests are held back while the machine is idle, in seconds."""
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: dict[str, float] = {}
        """Client -> when it asked, oldest first."""
        self._answered: dict[str, float] = {}
        """Client that thinks now -> when it was answered."""
        self._thinks: dict[str, tuple[float, float]] = {}
        """Client -> mean and mean absolute deviation of its thinking time, averaged as TCP does (RFC 6298)."""
        self._costs: dict[int, float] = {}
        """Batch size -> seconds, averaged over recent batches."""
        self._warm = False
        self._idle_since = 0.0

    def arrived(self, client: str, now: float) -> None:
        """`client` asks, and waits from now on."""
        self._waiting[client] = now
        answered = self._answered.pop(client, None)
        if answered is None:
            return
        mean, deviation = self._thinks.get(client, (now - answered, (now - answered) / 2))
        # A client that was away (a new episode, another task) says little about how it thinks.
        error = min(now - answered, mean + 4 * deviation + TICK) - mean
        self._thinks[client] = (mean + error / 8, deviation + (abs(error) - deviation) / 4)

    def started(self, clients: Sequence[str]) -> None:
        """A batch of these begins."""
        for client in clients:
            self._waiting.pop(client, None)

    def finished(self, clients: Sequence[str], seconds: float, now: float) -> None:
        """A batch of these has been answered and took `seconds`."""
        self._idle_since = now
        self._answered.update(dict.fromkeys(clients, now))
        if self._warm:  # the first batch pays for compilation and memory
            before = self._costs.get(len(clients), seconds)
            self._costs[len(clients)] = before + (seconds - before) / 4
        self._warm = True

    def left(self, client: str) -> None:
        """`client` has gone for good: nobody waits for it, and what was learnt of it is forgotten."""
        for known in (self._waiting, self._answered, self._thinks):
            known.pop(client, None)

    def hold(self, now: float) -> float:
        """Seconds to wait for more requests before the machine, now idle, should start; 0: start."""
        waiting = len(self._waiting)
        coming = self._coming(now)
        if waiting == 0 or waiting >= self._max_batch or not coming:
            return 0.0
        fixed, item = self.costs()
        aim = self._aim([*self._waiting, *coming], fixed, item)
        best, hold = fixed / waiting, 0.0
        for more, wait in enumerate(sorted(coming.values())[: max(0, aim - waiting)], 1):
            if wait >= fixed + item * waiting:
                break  # a batch that starts now is done before that one comes
            if (wait + fixed) / (waiting + more) < best:
                best, hold = (wait + fixed) / (waiting + more), wait
        idle = now - max(self._idle_since, next(iter(self._waiting.values())))
        hold = min(hold, fixed - idle, self._max_wait - idle)
        return hold if hold > TICK / 10 else 0.0

    def costs(self) -> tuple[float, float]:
        """Fixed and per-item seconds of a batch: least squares over the sizes seen so far, neither below 0."""
        if not self._costs:
            return 0.0, 0.0
        mean_size = sum(self._costs) / len(self._costs)
        mean_cost = sum(self._costs.values()) / len(self._costs)
        spread = sum((size - mean_size) ** 2 for size in self._costs)
        joint = sum((size - mean_size) * (cost - mean_cost) for size, cost in self._costs.items())
        item = min(max(joint / spread, 0.0), mean_cost / mean_size) if spread else 0.0
        return mean_cost - item * mean_size, item

    def _coming(self, now: float) -> dict[str, float]:
        """Thinking client -> expected seconds until it asks; those long overdue are taken for away."""
        self._answered = {client: then for client, then in self._answered.items() if now - then < FORGET}
        coming = {}
        for client, answered in self._answered.items():
            if client not in self._thinks:
                continue
            mean, deviation = self._thinks[client]
            if now - answered <= mean + 4 * deviation + TICK:
                # Who is late by some time will be so for about as long again.
                coming[client] = max(abs(answered + mean - now), deviation, TICK)
        return coming

    def _aim(self, clients: Sequence[str], fixed: float, item: float) -> int:
        """Size of the groups whose round is shortest; of equal rounds, that of the smaller groups."""
        known = [sum(self._thinks[client]) for client in clients if client in self._thinks]
        think, count = sum(known) / len(known), len(clients)

        def round_seconds(groups: int) -> float:
            return max(groups * fixed + count * item, think + fixed + item * math.ceil(count / groups))

        choices = range(math.ceil(count / self._max_batch), count + 1)
        groups = min(choices, key=lambda groups: (round(round_seconds(groups), 6), -groups))
        return math.ceil(count / groups)
