"""What heads say of a teacher's layers (stage 1 of ActDistill): a row a pictured frame, joined by episode and step.

    DIR/probes/<episode name>.parquet    semantics float16 [L * S], actions float32 [L * K * A]
    DIR/heads.json, heads.safetensors    who says it

Notation as in models.vla.heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vlaad_ray.configs import Location
from vlaad_ray.files import children
from vlaad_ray.store.parquet import SCHEMA_VERSION, opened_table, read_footer, write_table


class Probes(NamedTuple):
    """Of one episode, F of whose T steps have pictures."""

    steps: np.ndarray
    """[F] int32."""
    semantics: np.ndarray
    """[F, L * S] float16."""
    actions: np.ndarray
    """[F, L * K * A] float32."""


def probes_path(root: Location, episode: str) -> Location:
    return root / "probes" / f"{episode}.parquet"


def write_probes(
    root: Location, episode: str, probes: Probes, origin: Mapping[str, Any], measured: Mapping[str, Any]
) -> Location:
    """Store those of an episode. `origin`: what determines them; `measured`: sums over its frames, for summaries."""
    count = len(probes.steps)
    lists = pa.FixedSizeListArray.from_arrays
    table = pa.table(
        {
            "episode": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [episode]),
            "step": pa.array(probes.steps.astype(np.int32)),
            "semantics": lists(pa.array(probes.semantics.astype(np.float16).ravel()), probes.semantics.shape[1]),
            "actions": lists(pa.array(probes.actions.astype(np.float32).ravel()), probes.actions.shape[1]),
        }
    )
    footer = {
        "kind": "probes",
        "schema_version": SCHEMA_VERSION,
        "episode": episode,
        "steps": count,
        "origin": dict(origin),
        "measured": dict(measured),
    }
    return write_table(probes_path(root, episode), table, footer)


def read_probes(root: Location, episode: str) -> Probes:
    with opened_table(probes_path(root, episode), "probes") as (_, file):
        table = file.read(columns=["step", "semantics", "actions"]).combine_chunks()
    numbers = (table[name].combine_chunks() for name in ("semantics", "actions"))
    semantics, actions = (each.flatten().to_numpy().reshape(len(each), each.type.list_size) for each in numbers)
    return Probes(table["step"].to_numpy(), semantics, actions)


def probed_episodes(root: Location) -> set[str]:
    """Names of the episodes that a directory has probes of, possibly none."""
    return {path.stem for path in children(root / "probes", ".parquet")}


def probes_facts(place: Location) -> dict[str, Any]:
    """The footer of a file of probes: `origin`, `measured`, `steps`."""
    return read_footer(place, "probes")
