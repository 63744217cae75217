"""Where a stage reads and writes, as all nodes of a cluster see it: checked before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from vlaad_ray.configs import Location


def storage(place: Location) -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of Ray Train's and Ray Tune's run configs, for a place of ours."""
    if isinstance(place, Path):
        return {"storage_path": str(place), "storage_filesystem": None}
    # Ray's own way from a URI is Arrow's client, which takes its address and credentials from elsewhere.
    return {"storage_path": place.path, "storage_filesystem": PyFileSystem(FSSpecHandler(place.fs))}
