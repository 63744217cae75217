"""What a VLM answered, a row a question; every usable answer, audited; those that a person accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vlaad_ray.configs import Location
from vlaad_ray.store.parquet import SCHEMA_VERSION, read_table, write_table

ANSWER_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("kind", pa.string()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("phase", pa.string()),
        ("frames", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("problem", pa.string()),
        ("attempts", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("generated_tokens", pa.int64()),
    ]
)
AUDIT_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("episode", pa.string()),
        ("suite", pa.string()),
        ("task", pa.int32()),
        ("instruction", pa.string()),
        ("kind", pa.string()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("phase", pa.string()),
        ("frames", pa.list_(pa.int32())),
        ("prompt", pa.string()),
        ("description", pa.string()),
        ("element", pa.string()),
        ("direction", pa.string()),
        ("truth", pa.string()),
        ("direction_seen", pa.string()),
        ("truth_seen", pa.string()),
        ("moved", pa.list_(pa.float64(), 5)),
        ("verdict", pa.string()),
        ("parts", pa.map_(pa.string(), pa.string())),
        ("reason", pa.string()),
        ("decision", pa.string()),
    ]
)
ACCEPTED_SCHEMA = pa.schema(
    [
        AUDIT_SCHEMA.field(name)
        for name in (
            *("request", "episode", "suite", "task", "instruction", "kind", "first", "last", "phase", "frames"),
            *("description", "element", "direction"),
        )
    ]
)


def answers_path(root: Location, episode: str) -> Location:
    return root / "answers" / f"{episode}.parquet"


def write_answers(root: Location, episode: str, rows: Sequence[Mapping[str, Any]]) -> Location:
    """Every answer that a VLM gave on an episode, good or not: what it said once need not be asked again."""
    footer = {"kind": "answers", "schema_version": SCHEMA_VERSION, "episode": episode, "steps": len(rows)}
    return write_table(answers_path(root, episode), pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA), footer)


def read_answers(root: Location, episode: str) -> list[dict[str, Any]]:
    """What write_answers wrote; nothing when it never did. A corrupt file is the user's error."""
    path = answers_path(root, episode)
    if not path.exists():
        return []
    return _rows(path, "answers", ANSWER_SCHEMA)


def write_audit(root: Location, rows: Sequence[Mapping[str, Any]]) -> Location:
    """What the audit says of every answer, in one file."""
    footer = {"kind": "audit", "schema_version": SCHEMA_VERSION, "steps": len(rows)}
    return write_table(root / "audit.parquet", pa.Table.from_pylist(list(rows), schema=AUDIT_SCHEMA), footer)


def read_audit(root: Location) -> list[dict[str, Any]]:
    rows = _rows(root / "audit.parquet", "audit", AUDIT_SCHEMA)
    return [{**row, "parts": dict(row["parts"])} for row in rows]


def write_accepted(root: Location, audited: Sequence[Mapping[str, Any]]) -> Location:
    """The answers that a person accepted, out of rows of AUDIT_SCHEMA: labels to measure other labels by."""
    rows = [row for row in audited if row["decision"] == "accepted"]
    footer = {"kind": "accepted", "schema_version": SCHEMA_VERSION, "steps": len(rows)}
    return write_table(root / "accepted.parquet", pa.Table.from_pylist(rows, schema=ACCEPTED_SCHEMA), footer)


def read_accepted(root: Location) -> list[dict[str, Any]]:
    return _rows(root / "accepted.parquet", "accepted", ACCEPTED_SCHEMA)


def _rows(path: Location, kind: str, schema: pa.Schema) -> list[dict[str, Any]]:
    return read_table(path, kind, schema.names).to_pylist()
