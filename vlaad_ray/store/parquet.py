"""Parquet files of ours: facts about the whole in the footer, as JSON, with their kind and the schema's version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlaad_ray.configs import UserError
from vlaad_ray.store.files import replacing

SCHEMA_VERSION = 1
FOOTER_KEY = b"vlaad_ray"


def write_table(path: Path, table: pa.Table, footer: Mapping[str, Any]) -> Path:
    table = table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_footer(path: Path, kind: str) -> dict[str, Any]:
    with opened_table(path, kind) as (footer, _):
        return footer


@contextmanager
def opened_table(path: Path, kind: str) -> Iterator[tuple[dict[str, Any], pq.ParquetFile]]:
    """(footer, the file) of a file of ours, opened once for all that is read of it. Raises UserError for any other."""
    try:
        with pq.ParquetFile(path) as file:
            yield _footer(path, kind, file.schema_arrow.metadata or {}), file
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, str(error)) from None


def count_values(file: pq.ParquetFile, column: str) -> int:
    """How many rows of a plain column are not null, from the file's statistics; where there are none, all rows."""
    nulls = 0
    for group in range(file.metadata.num_row_groups):
        chunks = (file.metadata.row_group(group).column(index) for index in range(file.metadata.num_columns))
        statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == column)
        nulls += statistics.null_count if statistics is not None and statistics.has_null_count else 0
    return int(file.metadata.num_rows - nulls)


def _footer(path: Path, kind: str, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
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


def read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, str(error)) from None


def corrupt(path: Path, why: str) -> UserError:
    first_line = why.splitlines()[0] if why else "unreadable"
    return UserError(f"{path} is corrupt ({first_line}); delete it and rerun the job that wrote it")


def list_tables(root: Path, folder: str, remedy: str) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a directory; {remedy}")
    paths = sorted((root / folder).glob("[!.]*.parquet"))
    if not paths:
        raise UserError(f"{root} holds no {folder}; {remedy}")
    return paths


def fixed_size(values: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1 if len(column) else 0)
