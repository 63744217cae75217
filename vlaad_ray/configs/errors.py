"""What a job says when the user is to mend something."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do. Jobs print only that."""


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
