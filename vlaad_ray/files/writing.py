"""Writing: a file or a folder becomes visible whole, or not at all.

On a disk it is made under a hidden name beside its own, flushed, and renamed. To an object store it goes in one upload,
which shows nothing until it is complete; a folder's last file is the one by which readers know that it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from vlaad_ray.configs import Location, write_record, writing
from vlaad_ray.files.remote import asking


@contextmanager
def replacing(place: Location) -> Iterator[Path]:
    """A path on this machine to write; what is there when the block ends well is put at `place`.

    The file's mode is what the umask says, whatever the writer made of it. Raises UserError where nothing can be
    written.
    """
    if not isinstance(place, Path):
        with tempfile.TemporaryDirectory(prefix="vlaad_ray-") as folder:
            temporary = Path(folder) / place.name
            yield temporary
            with asking(place):
                place.fs.put_file(str(temporary), place.path)
        return
    temporary = _beside(place)
    with writing(place), ExitStack() as after:
        place.parent.mkdir(parents=True, exist_ok=True)
        after.callback(temporary.unlink, missing_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        _settle(temporary, mode)
        os.replace(temporary, place)
        _flush(place.parent)


@contextmanager
def replacing_directory(place: Location, marker: str) -> Iterator[Path]:
    """A folder on this machine to fill, put in the place of `place` when the block ends well.

    `marker` is the file in it without which readers take it for none. In a store nothing can replace a folder at once:
    the marker goes first and comes back last. A reader that holds the old marker and gets new files learns it from the
    hashes that a marker should have of them.
    """
    if not isinstance(place, Path):
        with tempfile.TemporaryDirectory(prefix="vlaad_ray-") as folder:
            yield Path(folder)
            with asking(place):
                _upload(Path(folder), place, marker)
        return
    temporary = _beside(place)
    with writing(place), ExitStack() as after:
        after.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        probe = temporary / "mode"
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _settle(path, mode)
        _swap(temporary, place)
        _flush(place.parent)


@contextmanager
def filling(place: Location, marker: str) -> Iterator[Path]:
    """A folder on this machine for files that belong into `place`, beside what is there; `marker` as above.

    An old marker goes before anything else happens. If the block leaves none, the folder stays without.
    """
    with asking(place):
        (place / marker).unlink(missing_ok=True)
    if isinstance(place, Path):
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            yield place
        return
    with tempfile.TemporaryDirectory(prefix="vlaad_ray-") as folder:
        yield Path(folder)
        put_all(Path(folder), place, marker)


def write_json(place: Location, value: Any) -> Location:
    """Dataclasses become objects. Raises ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n"
    with replacing(place) as temporary:
        temporary.write_text(text)
    return place


def _plain(value: Any) -> Any:
    return write_record(value) if is_dataclass(value) else str(value)


def remove_tree(place: Location) -> None:
    """Remove a folder with all that is in it; one that isn't there is fine."""
    with suppress(FileNotFoundError), asking(place):
        if isinstance(place, Path):
            shutil.rmtree(place)
        else:
            place.fs.rm(place.path, recursive=True)


def _beside(place: Path) -> Path:
    """A hidden name of our own: machines and containers that share a disk have processes of the same number."""
    return place.with_name(f".{place.name}.{socket.gethostname()[:32]}.{os.getpid()}.{secrets.token_hex(4)}")


def _swap(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what is there is removed, be it another writer's of this moment."""
    while True:
        try:
            os.rename(new, place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        aside = _beside(place)
        with suppress(FileNotFoundError):
            os.rename(place, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _settle(path: Path, mode: int) -> None:
    """Give a file at least the mode of a plain one, and let it reach the disk before its name does."""
    path.chmod(stat.S_IMODE(path.stat().st_mode | mode))
    _flush(path)


def _flush(path: Path) -> None:
    with ExitStack() as after:
        handle = os.open(path, os.O_RDONLY)
        after.callback(os.close, handle)
        os.fsync(handle)


def _upload(folder: Path, place: UPath, marker: str) -> None:
    """All of `folder`, and nothing else any more; between the old marker and the new there is none."""
    fs, root = place.fs, place.path
    if fs.exists(f"{root}/{marker}"):
        fs.rm_file(f"{root}/{marker}")
    kept = {f"{root}/{path.relative_to(folder)}" for path in folder.rglob("*")}
    if stale := sorted(set(fs.find(root)) - kept):
        fs.rm(stale)
    put_all(folder, place, marker)


def put_all(folder: Path, place: UPath, marker: str = "") -> None:
    """Copy all files of `folder` into `place`, each whole; `marker` last."""
    sources = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / marker]
    with asking(place):
        place.fs.put([str(path) for path in sources], [f"{place.path}/{path.relative_to(folder)}" for path in sources])
        if (folder / marker).is_file():
            place.fs.put_file(str(folder / marker), f"{place.path}/{marker}")
