"""What a job says when the user is to mend something."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do. Jobs print only that."""


@contextmanager
def users_errors() -> Iterator[None]:
    """Around all that a command does: a user's error prints as one line and exits with 2, Ctrl-C exits with 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def with_packages(load: Callable[[], Loaded], what: str, install: str) -> Loaded:
    """What `load` returns. Raises UserError where it imports a package that is not there: `what` needs it, and
    `pip install` with `install` brings it.
    """
    try:
        return load()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "vlaad_ray"):
            raise
        raise UserError(
            f"{what} needs the package {package}, which is not installed; type: pip install '{install}'"
        ) from None


def cannot_write(path: Path | str, error: OSError) -> UserError | None:
    """A full disk, or a place where nothing may be written, as the user's error; None for any other."""
    if error.errno not in (*FULL, *BARRED):
        return None
    remedy = "make room, then rerun the same command" if error.errno in FULL else "choose another place"
    return UserError(f"cannot write {path}: {os.strerror(error.errno)}; {remedy}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written, what `cannot_write` knows is the user's to mend."""
    try:
        yield
    except OSError as error:
        if (known := cannot_write(path, error)) is None:
            raise
        raise known from None
