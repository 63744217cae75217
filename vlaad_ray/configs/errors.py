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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written, a full disk or a place where nothing may be written is the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *BARRED):
            raise
        remedy = "make room, then rerun the same command" if error.errno in FULL else "choose another place"
        raise UserError(f"cannot write {path}: {os.strerror(error.errno)}; {remedy}") from None
