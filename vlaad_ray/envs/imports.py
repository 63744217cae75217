"""What has to be so before robosuite is imported, for it to run beside other users and from a read-only image.

By itself it opens /tmp/robosuite.log, which belongs to whoever came first, and has numba keep what it compiles beside
robosuite's source, else under HOME: where it can write to neither, the import fails.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path


def tame_robosuite() -> None:
    """Call it before robosuite's first import; later it does nothing."""
    found = importlib.util.find_spec("robosuite")
    if found is None or not found.submodule_search_locations or "robosuite" in sys.modules:
        return
    folder = Path(found.submodule_search_locations[0])
    if os.path.expanduser("~") == "~":  # a user id without a name, as pods may have: LIBERO asks for its home
        os.environ["HOME"] = str(private_folder())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not any(_writable(place) for place in (folder / "utils" / "__pycache__", caches / "numba")):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(private_folder() / "numba"))
    _set_macros(folder / "macros.py")


def private_folder() -> Path:
    """A folder in the temporary directory that this user alone can write to, the same for all processes.

    numba's files are code: one that somebody else might write to is passed over for a new one.
    """
    folder = Path(tempfile.gettempdir()) / f"vlaad_ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or facts.st_mode != 0o040700:
            return Path(tempfile.mkdtemp(prefix="vlaad_ray-"))
    return folder


def _set_macros(path: Path) -> None:
    """robosuite's settings, loaded ahead of it: it would open its log file while they are being loaded."""
    found = importlib.util.spec_from_file_location("robosuite.macros", path)
    assert found is not None and found.loader is not None
    macros = importlib.util.module_from_spec(found)
    found.loader.exec_module(macros)
    vars(macros)["FILE_LOGGING_LEVEL"] = None
    sys.modules["robosuite.macros"] = macros


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in what there is of the way to it."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.access(there, os.W_OK | os.X_OK)
