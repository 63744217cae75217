"""Where a user has no home to write to, as in a read-only image: a folder of one's own in the temporary directory."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def private_folder() -> Path:
    """A folder in the temporary directory that this user alone can write to, the same for all processes.

    What is kept there may be code: a folder that somebody else might write to is passed over for a new one.
    """
    folder = Path(tempfile.gettempdir()) / f"vlaad_ray-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode != 0o040700:
        return Path(tempfile.mkdtemp(prefix="vlaad_ray-"))
    return folder


def home() -> Path:
    """The user's home. One without a name and HOME, as in some pods, gets one: libraries fail without."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(private_folder())
    return Path.home()


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in what there is of the way to it."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.access(there, os.W_OK | os.X_OK)
