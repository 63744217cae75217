"""Labels, a row a frame, in an annotation directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vlaad_ray.configs import Location
from vlaad_ray.files import children
from vlaad_ray.store.parquet import SCHEMA_VERSION, corrupt, list_tables, opened_table, read_footer, write_table
from vlaad_ray.types import Annotation

ANNOTATION_SCHEMA = pa.schema(
    [
        ("episode", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int32()),
        ("phase", pa.string()),
        ("direction", pa.string()),
        ("description", pa.string()),
        ("segment", pa.int32()),
        ("source", pa.string()),
        ("flag", pa.string()),
    ]
)


def write_annotation(root: Location, annotation: Annotation, provenance: Mapping[str, Any]) -> Location:
    """Store the labels of one episode; `provenance` says which annotator, taxonomy, versions and data made them."""
    steps = len(annotation.phases)
    table = pa.table(
        {
            "episode": pa.DictionaryArray.from_arrays(pa.array(np.zeros(steps, np.int32)), [annotation.episode]),
            "step": pa.array(np.arange(steps, dtype=np.int32)),
            "phase": pa.array(annotation.phases, pa.string()),
            "direction": pa.array(annotation.directions, pa.string()),
            "description": pa.array(annotation.descriptions, pa.string()),
            "segment": pa.array(annotation.segments, pa.int32()),
            "source": pa.array(annotation.sources, pa.string()),
            "flag": pa.array(annotation.flags, pa.string()),
        },
        schema=ANNOTATION_SCHEMA,
    )
    footer = {
        "kind": "annotation",
        "schema_version": SCHEMA_VERSION,
        "episode": annotation.episode,
        "steps": steps,
        "provenance": dict(provenance),
    }
    return write_table(annotation_path(root, annotation.episode), table, footer)


def annotation_path(root: Location, episode: str) -> Location:
    return root / "annotations" / f"{episode}.parquet"


def list_annotations(root: Location) -> list[Location]:
    return list_tables(root, "annotations", "make them with jobs/annotate.py")


def annotated_episodes(root: Location) -> set[str]:
    """Names of the episodes that an annotation directory has labels of, possibly none."""
    return {path.stem for path in children(root / "annotations", ".parquet")}


def read_annotation(path: Location) -> Annotation:
    annotation, _ = read_labels(path)
    return annotation


def read_labels(path: Location) -> tuple[Annotation, dict[str, Any]]:
    """Labels of one episode, and who made them with what settings. Opens the file once."""
    with opened_table(path, "annotation") as (footer, file):
        table = file.read(columns=["phase", "direction", "description", "segment", "source", "flag"])
    if table.num_rows != footer["steps"]:
        raise corrupt(path, f"{table.num_rows} rows where its footer says {footer['steps']}")
    annotation = Annotation(
        episode=footer["episode"],
        phases=tuple(table["phase"].to_pylist()),
        directions=tuple(table["direction"].to_pylist()),
        descriptions=tuple(table["description"].to_pylist()),
        segments=table["segment"].to_numpy(),
        sources=tuple(table["source"].to_pylist()),
        flags=tuple(table["flag"].to_pylist()),
    )
    return annotation, footer["provenance"]


def annotation_provenance(path: Location) -> dict[str, Any]:
    """Who made one annotation file, with what settings."""
    return read_footer(path, "annotation")["provenance"]
