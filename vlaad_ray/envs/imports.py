"""What has to be so before robosuite is imported, for it to run beside other users and from a read-only image.

By itself it opens /tmp/robosuite.log, which belongs to whoever came first, and has numba keep what it compiles beside
robosuite's source, else under HOME: where it can write to neither, the import fails.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from vlaad_ray.files.private import home, private_folder, writable


def tame_robosuite() -> None:
    """Call it before robosuite's first import; later it does nothing."""
    found = importlib.util.find_spec("robosuite")
    if found is None or not found.submodule_search_locations or "robosuite" in sys.modules:
        return
    folder = Path(found.submodule_search_locations[0])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache")
    if not any(writable(place) for place in (folder / "utils" / "__pycache__", caches / "numba")):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(private_folder() / "numba"))
    _set_macros(folder / "macros.py")


def _set_macros(path: Path) -> None:
    """robosuite's settings, loaded ahead of it: it would open its log file while they are being loaded."""
    found = importlib.util.spec_from_file_location("robosuite.macros", path)
    assert found is not None and found.loader is not None
    macros = importlib.util.module_from_spec(found)
    found.loader.exec_module(macros)
    vars(macros)["FILE_LOGGING_LEVEL"] = None
    sys.modules["robosuite.macros"] = macros
