"""Object stores: whether one can be reached, and what it refuses said in the user's words."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from fsspec.asyn import AsyncFileSystem, sync

from vlaad_ray.configs import Location, UserError

ANSWER_S = 20.0
"""Seconds that a store has for its first answer. Later ones are tried again for longer, by its own client."""
AT_ONCE = 32
"""Requests under way together: a store takes tens of milliseconds for each, and hundreds at a time."""

Result = TypeVar("Result")


def reach(place: Location) -> None:
    """Raise UserError unless the store of `place` answers, knows its bucket and lets us in. A path is always reached.

    One or two requests; nothing needs to be at `place` yet.
    """
    if isinstance(place, Path):
        return
    try:
        with asking(place):
            if isinstance(place.fs, AsyncFileSystem):
                sync(place.fs.loop, place.fs._info, place.path, timeout=ANSWER_S)
            else:
                place.fs.info(place.path)
    except FileNotFoundError as error:
        if str(error).strip("/") != place.path.strip("/"):  # else the bucket is there, and nothing yet at that name
            raise UserError(f"{place}: {_first_line(error)}; make it first, or check the name") from None


@contextmanager
def asking(place: Location) -> Iterator[None]:
    """Around requests for `place`: what its store refuses, or doesn't answer, is a UserError that names it.

    A file that isn't there stays a FileNotFoundError. A path's errors stay as they are.
    """
    if isinstance(place, Path):
        yield
        return
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise UserError(
            f"{place}: access refused ({_first_line(error)}); check the credentials, and what they permit"
        ) from None
    except _failures(place.protocol) as error:
        reason = _first_line(error) or f"no answer within {ANSWER_S:.0f} s"
        raise UserError(
            f"{place}: the store cannot be used ({reason}); check that it runs, its address (AWS_ENDPOINT_URL for S3) "
            "and the credentials"
        ) from None


def opened(place: Location) -> BinaryIO:
    """`place` for reading; of an object only what is read is fetched, a request for each read."""
    if isinstance(place, Path):
        return place.open("rb")
    return cast(BinaryIO, place.fs.open(place.path, "rb", cache_type="none"))


def in_parallel(function: Callable[[Location], Result], places: Iterable[Location]) -> Iterator[Result]:
    """`function` of each place, in order. Stores are asked about many at once, a disk about one after the other."""
    places = iter(places)
    first = next(places, None)
    if first is None:
        return
    every = itertools.chain([first], places)
    if isinstance(first, Path):
        yield from map(function, every)
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield from threads.map(function, every)


def _failures(scheme: str) -> tuple[type[Exception], ...]:
    if scheme != "s3":
        return OSError, asyncio.TimeoutError
    from botocore.exceptions import BotoCoreError

    return OSError, asyncio.TimeoutError, BotoCoreError


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else ""
