"""Arrays kept for other runs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import read_bytes, replacing


def cached_arrays(path: Location, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the .npz file at `path`; if there is none yet, what `make` returns, stored there first.

    `path` must name everything that determines the arrays. Several processes may ask at once: each makes them.
    """
    try:
        stored = read_bytes(path)
    except FileNotFoundError:
        made = dict(make())
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made
    try:
        with np.load(io.BytesIO(stored)) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is corrupt ({error}); delete it: it will be made again") from None
