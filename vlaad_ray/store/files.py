"""Whole files: written at once or not at all, read with a clear error."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vlaad_ray.configs import UserError, writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not.

    Raises UserError where nothing can be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> Path:
    """Raises ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path


def cached_arrays(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the .npz file at `path`; if there is none yet, what `make` returns, stored there first.

    `path` must name everything that determines the arrays. Several processes may ask at once: each makes them.
    """
    if not path.exists():
        made = dict(make())
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        return made
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is corrupt ({error}); delete it: it will be made again") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the job that writes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and rerun the job that writes it") from None
