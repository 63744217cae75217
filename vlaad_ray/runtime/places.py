"""Where a stage reads and writes, as all nodes of a cluster see it: checked before work starts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vlaad_ray import files
from vlaad_ray.configs import Location, UserError, places_of
from vlaad_ray.runtime import cluster

WRITTEN = ("out", "repair", "frame_cache", "results")
"""Fields of configs that name a place to write to; others are read."""
READ_BY_NODES = ("data", "annotations", "checkpoint", "from_")
ANSWER_S = 300.0
"""Seconds that a node has to look at a place: it may have to install the job's packages first."""
REMEDY = "give a directory on a mount that all nodes share, or a URI, as s3://BUCKET/FOLDER"


def check(config: Any) -> None:
    """Raise UserError unless the places that a stage's config names can be used from where its work is done.

    On a cluster that was started elsewhere a path must be whole, and what one node writes the others must see: each
    alive node is asked, which takes seconds. Nothing of it stays. A Ray of this process's own needs none of it.
    """
    if not _attached():
        return
    named = dict(places_of(config))
    for name, place in named.items():
        if isinstance(place, Path) and not place.is_absolute():
            raise UserError(_relative(name, place))
    cluster.connect()
    _ask_nodes(
        {name: place for name, place in named.items() if name in WRITTEN},
        {name: place for name, place in named.items() if name in READ_BY_NODES},
    )


def storage(place: Location) -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of Ray Train's and Ray Tune's run configs, for a place of ours."""
    if isinstance(place, Path):
        return {"storage_path": str(place), "storage_filesystem": None}
    # Ray's own way from a URI is Arrow's client, which takes its address and credentials from elsewhere.
    return {"storage_path": place.path, "storage_filesystem": PyFileSystem(FSSpecHandler(place.fs))}


def _attached() -> bool:
    """Whether others than this process started the Ray that works: elsewhere, perhaps, or with several nodes."""
    if (os.environ.get("RAY_ADDRESS") or "local") != "local":
        return True
    return ray.is_initialized() and len(_nodes()) > 1


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _relative(name: str, place: Path) -> str:
    here = f"--{name.replace('_', '-').rstrip('-')} {place} is relative"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # a submitted job
        return f"{here}, and a submitted job runs in Ray's own copy of the working directory; {REMEDY}"
    return f"{here}, and the cluster's nodes run elsewhere; write {place.absolute()} if that is a mount they share"


def _ask_nodes(written: Mapping[str, Location], read: Mapping[str, Location]) -> None:
    mark = f".probe-{secrets.token_hex(6)}"
    nodes = _nodes()
    made = [place for place in written.values() if not place.exists()]
    with ExitStack() as after:
        after.callback(_clear_up, written.values(), [f"{mark}-{left}" for left in ("driver", *range(len(nodes)))], made)
        for place in written.values():
            files.write_json(place / f"{mark}-driver", None)
        answers = [
            ray.remote(_look_around)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(f"{mark}-driver", f"{mark}-{number}", dict(written), dict(read))
            for number, node in enumerate(nodes)
        ]
        for number, (node, answer) in enumerate(zip(nodes, answers, strict=True)):
            who = f"node {node['NodeManagerAddress']}"
            if not ray.wait([answer], timeout=ANSWER_S)[0]:
                raise UserError(f"{who} did not look at its places within {ANSWER_S:.0f} s; see `ray status`")
            if problem := cluster.get(answer):
                raise UserError(f"{problem.replace('NODE', who)}; {REMEDY}")
            for name, place in written.items():
                if not (place / f"{mark}-{number}").exists():
                    raise UserError(f"--{name} {place}: what {who} writes there is not here; {REMEDY}")


def _clear_up(written: Iterable[Location], marks: Sequence[str], made: Iterable[Location]) -> None:
    """Remove the marks, and the folders that were made for them, unless somebody has written there since."""
    for place in written:
        for mark in marks:
            (place / mark).unlink(missing_ok=True)
    for place in made:
        if isinstance(place, Path):
            with suppress(OSError):
                place.rmdir()


def _look_around(mark: str, own_mark: str, written: Mapping[str, Location], read: Mapping[str, Location]) -> str | None:
    """On a node: what is wrong with the places as seen from there, NODE standing for its address."""
    try:
        for name, place in written.items():
            if not (place / mark).exists():
                return f"--{name} {place} is another place on NODE"
            files.write_json(place / own_mark, None)
        for name, place in read.items():
            if not place.exists():
                return f"--{name} {place} is not there on NODE"
    except UserError as error:
        return f"NODE: {error}"
    return None
