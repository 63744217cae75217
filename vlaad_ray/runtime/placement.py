"""How many processes the nodes of a cluster hold, and how many CPUs each of them may ask for. No Ray in here.

Ray runs a process on one node and never splits it: one that asks for more than any node has waits for ever, however
much all nodes have together. So nothing here adds up nodes before a process has been fitted into each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vlaad_ray.configs import UserError

Node = Mapping[str, float]
"""What one node has, by Ray's names: CPU and GPU in pieces, memory in bytes. What is left out it has none of."""
GRAIN = 1e-4
"""Ray's own: smaller parts of a CPU or GPU do not count."""


class NoRoom(UserError):
    """What is asked for fits none of the nodes, or not as often as it is asked for. Other nodes could change that."""

    def __init__(self, lacking: str, advice: str):
        super().__init__(f"{lacking}; {advice}")
        self.lacking = lacking


@dataclass(frozen=True)
class Processes:
    """Processes of one kind: each finds all that it asks for on one node."""

    kind: str
    """worker, actor, replica …: users say how many by --KINDs, and with what by --cpus-per-KIND and --gpus-per-KIND."""
    count: int = 0
    """0: as many as the nodes hold."""
    cpus: float = 0.0
    """Of each."""
    gpus: float = 0.0
    """Of each: a fraction below 1, or whole GPUs."""
    share: bool = False
    """Let each have an equal share of its node's CPUs, whole ones and at least one, unless `cpus` says how many."""
    advice: str = ""
    """What may be lowered; "": the three flags above."""


@dataclass(frozen=True)
class Share:
    """What Processes get."""

    count: int
    cpus: float
    """Of each."""


def divide(nodes: Sequence[Node], wanted: Processes) -> Share:
    """How many processes the nodes hold, and how many CPUs each of them gets.

    With `wanted.share` the CPUs of each are the most with which all of them still fit: one on nodes of 16 and 8 CPUs
    gets 16, three get 8. One with GPUs leaves the node's other GPUs their part: on a node of 64 CPUs and 8 GPUs it gets
    8. Raises NoRoom, and UserError for what no node could ever give.
    """
    check(wanted)
    shared = wanted.share and not wanted.cpus
    each = replace(wanted, cpus=1.0) if shared else wanted
    room = total_room(nodes, each)
    if room == 0 or room < wanted.count:
        raise _no_room(nodes, each, room)
    if not wanted.count and room == math.inf:
        raise UserError(
            f"--{wanted.kind}s 0 means as many as the CPUs hold, and with --cpus-per-{wanted.kind} {wanted.cpus:g} "
            f"that is no number: give --{wanted.kind}s"
        )
    count = wanted.count or int(room)
    if not shared:
        return Share(count, wanted.cpus)
    most = int(max(node.get("CPU", 0.0) for node in nodes))
    cpus = next(cpus for cpus in range(most, 0, -1) if _fair_room(nodes, replace(wanted, cpus=cpus)) >= count)
    return Share(count, float(cpus))


def divide_groups(nodes: Sequence[Node], wanted: Processes, groups: int) -> tuple[int, Share]:
    """The same for groups of `wanted.count` processes (trainings, say) side by side: how many groups, and one's share.

    `groups`: 0: as many as the nodes hold. More than that wait for each other.
    """
    size = wanted.count or 1
    divide(nodes, replace(wanted, count=size))
    held = divide(nodes, replace(wanted, count=0)).count // size
    groups = groups or held
    share = divide(nodes, replace(wanted, count=min(groups, held) * size))
    return groups, Share(size, share.cpus)


def check(wanted: Processes) -> None:
    """Raises UserError for what makes no sense on any node."""
    kind = wanted.kind
    for flag, value in (
        (f"--{kind}s", wanted.count),
        (f"--cpus-per-{kind}", wanted.cpus),
        (f"--gpus-per-{kind}", wanted.gpus),
    ):
        if not 0 <= value < math.inf:
            raise UserError(f"{flag} must be 0 or more, not {value:g}")
    if wanted.gpus > 1 and wanted.gpus != int(wanted.gpus):
        raise UserError(f"--gpus-per-{kind} {wanted.gpus:g}: give a fraction below 1, or whole GPUs")


def total_room(nodes: Iterable[Node], each: Processes) -> float:
    """How many such processes the nodes hold; infinite for those that ask for nothing."""
    return sum(room(node, each) for node in nodes)


def room(node: Node, each: Processes) -> float:
    """How many such processes one node holds."""
    by_cpus = _pieces(node.get("CPU", 0.0), each.cpus)
    return min(by_cpus, _gpu_places(node, each.gpus))


def hosts(nodes: Sequence[Node], each: Processes) -> list[Node]:
    """The nodes that have room for at least one of them."""
    return [node for node in nodes if room(node, each) >= 1]


def without(nodes: Sequence[Node], taken: Processes) -> Sequence[Node]:
    """What is left of the nodes beside `taken`, which stand on as few as possible, and on GPU nodes only for GPUs.

    A guess at what Ray's scheduler does, to count what else fits.
    """
    left: list[dict[str, float]] = [dict(node) for node in nodes]
    order = sorted(left, key=lambda node: node.get("GPU", 0.0))
    for _ in range(taken.count):
        host = next((node for node in order if room(node, taken) >= 1), None)
        if host is None:
            break
        host["CPU"] = host.get("CPU", 0.0) - taken.cpus
        host["GPU"] = host.get("GPU", 0.0) - taken.gpus
    return left


def _pieces(there: float, each: float) -> float:
    return math.floor(there / each + GRAIN) if each else math.inf


def _gpu_places(node: Node, gpus: float) -> float:
    """A fraction never spans two GPUs: two with 0.6 each need two."""
    there = node.get("GPU", 0.0)
    if 0 < gpus < 1:
        whole = math.floor(there + GRAIN)
        return whole * _pieces(1.0, gpus) + _pieces(there - whole, gpus)
    return _pieces(there, gpus)


def _fair_room(nodes: Iterable[Node], each: Processes) -> float:
    """Room for processes that leave other GPUs of their node an equal part of its CPUs."""
    total = 0.0
    for node in nodes:
        places = _gpu_places(node, each.gpus) if each.gpus else 1.0
        if places and each.cpus <= max(1.0, node.get("CPU", 0.0) // places):
            total += room(node, each)
    return total


def _no_room(nodes: Sequence[Node], each: Processes, room: float) -> NoRoom:
    """What does not fit, what the largest node has, what to do."""
    kind, asked = each.kind, _amount(each.cpus, "CPU") + (f" and {_amount(each.gpus, 'GPU')}" if each.gpus else "")
    largest = max(
        nodes, key=lambda node: (min(node.get("GPU", 0.0), each.gpus), node.get("CPU", 0.0)), default=dict[str, float]()
    )
    has = f"the largest has {_amount(largest.get('CPU', 0.0), 'CPU')} and {_amount(largest.get('GPU', 0.0), 'GPU')}"
    if room:
        lacking = f"{each.count} {kind}s of {asked} do not fit: the nodes have room for {room:g} ({has})"
        return NoRoom(lacking, each.advice or f"lower --{kind}s")
    article = "an" if kind[0] in "aeiou" else "a"
    lowered = f"lower --cpus-per-{kind}" + (f" or --gpus-per-{kind}" if each.gpus else "")
    return NoRoom(f"no node has {asked} for {article} {kind}: {has}", f"{each.advice or lowered}, or add such a node")


def _amount(value: float, what: str) -> str:
    """Such as 2 CPUs, 0.5 GPU, no GPU."""
    return f"{f'{value:g}' if value > GRAIN else 'no'} {what}{'s' if value > 1 else ''}"
