"""One function over every episode file of a dataset, or over other pieces of work, in parallel, with Ray Data."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError, location
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.types import Episode

Work = Callable[[Location, Episode, dict[str, Any]], dict[str, Any]]
"""(path, the episode without its pictures, the facts in its footer) -> what is to be known of it; JSON must hold it."""


def over_episodes(paths: Sequence[Location], work: Work, title: str, gpus: float = 0.0) -> list[dict[str, Any]]:
    """What `work` returns for each file; {"path", "error"} for one that cannot be read. `gpus`: of each task."""
    files = ray.data.from_items([{"path": str(path)} for path in paths])
    rows = files.map(functools.partial(_one, work=work), num_gpus=gpus or None)
    records = []
    with cli.progress(title, len(paths)) as advance:
        for row in rows_of(rows):
            records.append(json.loads(row["record"]))
            advance("")
    return records


def over_pieces(pieces: Sequence[Any], work: Callable[[Any], dict[str, Any]], title: str) -> Iterator[dict[str, Any]]:
    """What `work` returns for each piece, as each is done: large pieces, so each is a task of its own.

    A piece is whatever Ray can send; JSON must hold what comes back. A UserError ends it all, in one line.
    """
    cluster.connect(ray_data=True)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # warns of its progress bars being off
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours instead of one an operator
    if not pieces:
        return
    numbers = ray.data.range(len(pieces), override_num_blocks=len(pieces))
    rows = numbers.map(functools.partial(_one_piece, pieces=ray.put(list(pieces)), work=work))
    with cli.progress(title, len(pieces)) as advance:
        for row in rows_of(rows):
            advance("")
            yield json.loads(row["record"])


def _one_piece(row: dict[str, Any], pieces: Any, work: Callable[[Any], dict[str, Any]]) -> dict[str, str]:
    return {"record": json.dumps(work(cluster.get(pieces)[int(row["id"])]))}


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows, one by one. A UserError of a task, such as a full disk, is raised as it was, in one line."""
    dataset.context.raise_original_map_exception = True
    try:
        yield from dataset.iter_rows()
    except RayTaskError as error:
        if isinstance(cause := cluster.cause(error), UserError):
            raise UserError(str(cause).splitlines()[0]) from None  # Ray Data adds lines on how to retry
        raise


def try_episode(path: Location, work: Work) -> dict[str, Any]:
    """The same for one file, here."""
    try:
        episode, facts = store.read_episode(path, images=False), store.read_metadata(path)
    except UserError as error:
        return {"path": str(path), "error": str(error)}
    return work(path, episode, facts)


def _one(row: dict[str, Any], work: Work) -> dict[str, str]:
    """As JSON, because Arrow turns dicts with different keys into one with all of them."""
    return {"record": json.dumps(try_episode(location(row["path"]), work))}
