"""Reading: what is in a folder, small files whole, and copies on this machine for libraries that want a path."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from upath import UPath

from vlaad_ray.configs import Location, UserError
from vlaad_ray.files.remote import asking

BUCKET = "bucket"
"""What a copy of one is called: as a place, it has no name."""
ONE_REQUEST = {"s3": {"max_concurrency": 1}}
"""s3fs asks for the size first, to fetch a large file in pieces; what is read here is small."""


def children(folder: Location, ending: str) -> list[Location]:
    """The files in `folder` whose names have that ending, by name: one listing. Hidden ones are a killed writer's.

    A folder that isn't there is an empty one.
    """
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError), asking(folder):
        if isinstance(folder, Path):
            names = os.listdir(folder)
        else:
            names = [path.rpartition("/")[2] for path in folder.fs.ls(folder.path, detail=False)]
    return [folder / name for name in sorted(names) if name.endswith(ending) and not name.startswith(".")]


def descendants(folder: Location, ending: str) -> list[Location]:
    """The same of all folders below `folder`, too, by path."""
    with asking(folder):
        if isinstance(folder, Path):
            found: list[Location] = [path for path in folder.rglob(f"*{ending}") if path.is_file()]
        else:
            root = folder.path.rstrip("/") + "/"
            found = [folder / name.removeprefix(root) for name in folder.fs.find(folder.path) if name.endswith(ending)]
    return sorted((path for path in found if not path.name.startswith(".")), key=str)


def read_bytes(place: Location) -> bytes:
    """A whole file: one request to a store."""
    with asking(place):
        if isinstance(place, Path):
            return place.read_bytes()
        return bytes(place.fs.cat_file(place.path, **ONE_REQUEST.get(place.protocol, {})))


def read_json(
    place: Location,
    absent: str = "run the job that writes it first",
    broken: str = "delete it and rerun the job that writes it",
) -> Any:
    """What a JSON file holds. `absent`, `broken`: what the UserError says to do where there is none, or half of one."""
    try:
        content = read_bytes(place)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{place} does not exist; {absent}") from None
    return parse_json(content, str(place), broken)


def parse_json(content: bytes | str, source: str, remedy: str) -> Any:
    """Raises UserError, naming the `source` and the `remedy`, for what is not JSON."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not valid JSON ({error}); {remedy}") from None


@contextmanager
def local_copy(place: Location, without: str = "") -> Iterator[Path]:
    """A path on this machine with what is at `place`, a file or a folder: itself if it is one, else a copy of it.

    Processes of one machine that want the same at the same time share one copy (so that weights mapped into memory
    lie there once), and the last to leave removes it. `without`: the ending of files that need not be copied. Raises
    UserError where there is nothing.
    """
    if isinstance(place, Path):
        yield place
        return
    with asking(place):
        found = place.fs.find(place.path, detail=True)
    found = {name: facts for name, facts in found.items() if not (without and name.endswith(without))}
    if not found:
        raise UserError(f"{place} does not exist")
    version = hashlib.sha256(repr((str(place), sorted(found.items()))).encode()).hexdigest()[:16]
    copies = Path(tempfile.gettempdir()) / f"vlaad_ray-copies-{os.getuid()}"
    copies.mkdir(mode=0o700, exist_ok=True)
    folder = copies / version
    with (copies / f"{version}.lock").open("w") as lock, ExitStack() as after:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not folder.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _download(place, list(found), folder)
            fcntl.flock(lock, fcntl.LOCK_SH)  # others may get in between, and leave as the last: hence the loop
        after.callback(_remove_unused, folder, lock)
        yield folder / (place.name or BUCKET)


def _remove_unused(folder: Path, lock: TextIO) -> None:
    with suppress(BlockingIOError):  # others still use it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _download(place: UPath, objects: list[str], folder: Path) -> None:
    """All `objects` at or below `place` into `folder`, which appears with all of them."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        root = Path(temporary) / "copy"
        targets = [root / ((place.name or BUCKET) + name.removeprefix(place.path.rstrip("/"))) for name in objects]
        try:
            with asking(place):
                place.fs.get(objects, [str(target) for target in targets])
        except FileNotFoundError as error:
            raise UserError(f"{place} changed while it was copied ({error}); try again") from None
        os.rename(root, folder)
