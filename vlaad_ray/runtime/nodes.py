"""The cluster's nodes, and waiting for those that its autoscaler may bring.

Ray itself waits for ever, without a word, for a node that nobody has. So what is asked for is first fitted to the nodes
that there are (runtime.placement). What fits none is asked for by a placement group, which an autoscaler sees as it
sees any other demand, and what the autoscaler thinks of it decides: wait, or say at once that it cannot be.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum
from typing import TypeVar

import ray
from ray.autoscaler.v2.sdk import DEFAULT_RPC_TIMEOUT_S, GcsClient
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from vlaad_ray.configs import UserError
from vlaad_ray.runtime.cli import console
from vlaad_ray.runtime.placement import Node, NoRoom, Processes

POLL_S = 1.0
SILENCE_S = 15.0
"""An autoscaler reports every 5 s. Where none has by then, there is none."""
STATUS_KEY = b"__autoscaling_status"
"""Where Ray's first autoscaler reports in Ray's key-value store, and `ray status` looks. The second has a call."""

Division = TypeVar("Division")


def nodes() -> list[Node]:
    """What each living node has, whether or not it is in use."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitted(division: Callable[[Sequence[Node]], Division], wanted: Processes, wait_s: float) -> Division:
    """What `division` makes of the cluster's nodes.

    Where it raises NoRoom and an autoscaler may still bring nodes for `wanted`, waits for these, `wait_s` seconds at
    most. Raises UserError when they don't come, or at once when nobody would bring them.
    """
    found = _tried(division)
    if not isinstance(found, NoRoom):
        return found
    cpus = wanted.cpus or float(wanted.share)
    each = {name: amount for name, amount in (("CPU", cpus), ("GPU", wanted.gpus)) if amount}
    group = placement_group([each] * max(1, wanted.count))
    with ExitStack() as after:
        after.callback(remove_placement_group, group)
        return _await(division, group, wait_s, found)


def _tried(division: Callable[[Sequence[Node]], Division]) -> Division | NoRoom:
    """What it makes of the nodes that there are now, or why it can't."""
    try:
        return division(nodes())
    except NoRoom as error:
        return error


def refuse_hopeless(division: Callable[[Sequence[Node]], object]) -> None:
    """For what comes hours later: raise UserError now if no node has what it takes, and nobody scales the cluster."""
    found = _tried(division)
    if isinstance(found, NoRoom):
        started_here = (os.environ.get("RAY_ADDRESS") or "local") == "local"
        if started_here or _first_autoscaler(_gcs()) is Prospect.REFUSED:
            raise found


def _await(
    division: Callable[[Sequence[Node]], Division], group: PlacementGroup, wait_s: float, no_room: NoRoom
) -> Division:
    began, announced = time.monotonic(), False
    autoscaler = Autoscaler(group)
    while (waited := time.monotonic() - began) < wait_s:
        prospect = autoscaler.prospect()
        if prospect is Prospect.REFUSED or (prospect is Prospect.NOBODY and waited > SILENCE_S):
            raise no_room
        if not announced and (prospect is Prospect.POSSIBLE or waited > SILENCE_S):
            console.print(
                f"{no_room.lacking}: waiting for the autoscaler to bring it, up to {wait_s:.0f} s (--wait-for-nodes-s)"
            )
            announced = True
        group.wait(POLL_S)
        found = _tried(division)
        if not isinstance(found, NoRoom):
            return found
        no_room = found
    if not announced:
        raise no_room
    raise UserError(
        f"{no_room.lacking}, and the autoscaler brought nothing that does within {wait_s:.0f} s; "
        "ask for less, or raise --wait-for-nodes-s"
    )


class Prospect(Enum):
    """What is to be expected of an autoscaler."""

    NOBODY = "no autoscaler has reported yet"
    OPEN = "it has not looked at what is asked for yet"
    REFUSED = "it has no such nodes"
    POSSIBLE = "it may bring nodes"


class Autoscaler:
    """What the cluster's autoscaler, of either version, says of one placement group that is waiting."""

    def __init__(self, group: PlacementGroup):
        self._group = group
        self._gcs = _gcs()
        self._asked = self._status().cluster_resource_state.cluster_resource_state_version

    def prospect(self) -> Prospect:
        state = self._status().autoscaling_state
        if state.autoscaler_state_version:  # the second version: it names what no type of node could hold
            if state.last_seen_cluster_resource_state_version < self._asked:
                return Prospect.OPEN
            refused = [request.details for request in state.infeasible_gang_resource_requests]
            ours = self._group.id.hex()
            return Prospect.REFUSED if any(text.startswith(ours) for text in refused) else Prospect.POSSIBLE
        return _first_autoscaler(self._gcs)

    def _status(self) -> GetClusterStatusReply:
        return GetClusterStatusReply.FromString(self._gcs.get_cluster_status(timeout_s=DEFAULT_RPC_TIMEOUT_S))


def _gcs() -> GcsClient:
    return GcsClient(ray.get_runtime_context().gcs_address)


def _first_autoscaler(gcs: GcsClient) -> Prospect:
    """What the first version says, of anything: it does not say which nodes it could bring."""
    report = gcs.internal_kv_get(STATUS_KEY, None, timeout=DEFAULT_RPC_TIMEOUT_S)
    summary = json.loads(report).get("autoscaler_report") if report else None
    if not summary or not summary["active_nodes"]:
        return Prospect.NOBODY
    # Ray runs it everywhere. Where it has nothing to scale, it names nodes after their ids.
    unmanaged = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return Prospect.REFUSED if summary["active_nodes"].keys() <= unmanaged else Prospect.POSSIBLE
