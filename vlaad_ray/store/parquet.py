"""Parquet files of ours: facts about the whole in the footer, as JSON, with their kind and the schema's version.

pyarrow gets absolute paths: it would take a relative one that holds a colon, run:1/data, for a URI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from vlaad_ray.configs import Location, UserError
from vlaad_ray.files import asking, children, opened, read_bytes, replacing

SCHEMA_VERSION = 1
FOOTER_KEY = b"vlaad_ray"
TAIL = 2**16
"""Bytes asked for to get at a footer: an episode's takes a tenth of them."""


def write_table(path: Location, table: pa.Table, footer: Mapping[str, Any]) -> Location:
    table = table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary.absolute(), compression="zstd")
    return path


def read_footer(path: Location, kind: str) -> dict[str, Any]:
    """The facts of a file of ours: one request to a store. Raises UserError for any other file."""
    return _footer(path, kind, schema_metadata(path))


def schema_metadata(path: Location) -> Mapping[bytes, bytes]:
    """What any Parquet file's schema says beside its columns: one request to a store. Raises UserError for others."""
    with reading(path):
        # Whole: Arrow takes run:1/data for a URI.
        source = path.absolute() if isinstance(path, Path) else pa.BufferReader(_tail(path))
        return dict(pq.read_schema(source).metadata or {})


@contextmanager
def opened_table(path: Location, kind: str) -> Iterator[tuple[dict[str, Any], pq.ParquetFile]]:
    """(footer, the file) of a file of ours, opened once for all that is read of it. Raises UserError for any other.

    Of a file in a store only the columns that are read are fetched.
    """
    source = path.absolute() if isinstance(path, Path) else None
    with reading(path), pq.ParquetFile(source or opened(path), pre_buffer=source is None) as file:
        yield _footer(path, kind, file.schema_arrow.metadata or {}), file


def read_table(path: Location, kind: str, columns: Sequence[str]) -> pa.Table:
    """These columns of a file of ours. Raises UserError likewise."""
    with opened_table(path, kind) as (_, file):
        return file.read(columns=list(columns))


@contextmanager
def reading(path: Location) -> Iterator[None]:
    """Around reading a Parquet file: what is wrong with it is a UserError that names it."""
    with asking(path):
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except PermissionError:
            raise
        except (pa.ArrowInvalid, OSError) as error:
            raise corrupt(path, str(error)) from None


def _tail(path: UPath) -> bytes:
    """The end of a file, with the whole footer in it, and nearly always in the first try."""
    tail = bytes(path.fs.cat_file(path.path, start=-TAIL))
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    return tail if footer <= len(tail) or len(tail) < TAIL else read_bytes(path)


def count_values(file: pq.ParquetFile, column: str) -> int:
    """How many rows of a plain column are not null, from the file's statistics; where there are none, all rows."""
    nulls = 0
    for group in range(file.metadata.num_row_groups):
        chunks = (file.metadata.row_group(group).column(index) for index in range(file.metadata.num_columns))
        statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == column)
        nulls += statistics.null_count if statistics is not None and statistics.has_null_count else 0
    return int(file.metadata.num_rows - nulls)


def _footer(path: Location, kind: str, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if FOOTER_KEY not in metadata:
        raise UserError(f"{path} was not written by vlaad_ray (no footer of ours); remove it from the directory")
    footer: dict[str, Any] = json.loads(metadata[FOOTER_KEY])
    if footer["kind"] != kind:
        raise UserError(f"{path} holds {footer['kind']}, not {kind}; check the directory you passed")
    if footer["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {footer['schema_version']}, this vlaad_ray reads {SCHEMA_VERSION}; "
            "make the data again or install the version that wrote it"
        )
    return footer


def corrupt(path: Location, why: str) -> UserError:
    first_line = why.splitlines()[0] if why else "unreadable"
    return UserError(f"{path} is corrupt ({first_line}); delete it and rerun the job that wrote it")


def list_tables(root: Location, folder: str, remedy: str) -> list[Location]:
    paths = children(root / folder, ".parquet")
    if not paths:
        wrong = f"holds no {folder}" if root.is_dir() else "is not a directory"
        raise UserError(f"{root} {wrong}; {remedy}")
    return paths


def fixed_size(values: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1 if len(column) else 0)
