"""What stage 1 leaves for stage 2: heads and what they say, and whether that is of the teacher and the data at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError, read_record
from vlaad_ray.configs.distil import ActDistillConfig
from vlaad_ray.files import in_parallel, local_copy, read_json, sha256, write_json
from vlaad_ray.methods.method import Columns
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.vla.heads import REVISION, Heads, HeadsConfig
from vlaad_ray.types import Episode

if TYPE_CHECKING:
    from vlaad_ray.methods.actdistill.probing import Prober

HEADS, WEIGHTS = "heads.json", "heads.safetensors"
SEMANTICS, ACTIONS = "semantics", "known_actions"
"""Columns of the training: [L * S] and [L * K * A] a frame."""


@dataclass(frozen=True)
class HeadsRecord:
    """heads.json."""

    teacher: str
    """What identifies the teacher's weights."""
    heads: HeadsConfig
    weights: str
    """Hash of heads.safetensors."""
    revision: int

    @property
    def origin(self) -> dict[str, Any]:
        """What determines what is kept of an episode, beside the episode."""
        return {
            "teacher": self.teacher,
            "heads": self.weights,
            "layers": self.heads.layers,
            "semantics": self.heads.semantics,
            "revision": self.revision,
        }


def reads(settings: ActDistillConfig) -> Mapping[str, Location]:
    return {"--probes": settings.probes} if settings.probes is not None else {}


def leave(learner: Prober, folder: Path) -> None:
    """The weights of the heads, beside the teacher they were trained on."""
    checkpoint.save_tensors(folder / WEIGHTS, learner.heads.state_dict())


def adopt_heads(probes: Location, weights: Location, config: HeadsConfig, teacher: str) -> HeadsRecord:
    """Copy the weights of trained heads into `probes`; heads.json, by which readers know them, goes last."""
    with store.replacing(probes / WEIGHTS) as temporary:
        temporary.write_bytes(weights.read_bytes())
    record = HeadsRecord(teacher, config, sha256(probes / WEIGHTS)[:16], REVISION)
    write_json(probes / HEADS, asdict(record))
    return record


def read_heads(probes: Location) -> HeadsRecord:
    """Raises UserError where there are none, or those of another version."""
    path = probes / HEADS
    content = read_json(path, "pass the directory that jobs/probe.py wrote as --probes", "run jobs/probe.py again")
    if content.get("revision") != REVISION:
        raise UserError(
            f"{path}: heads of revision {content.get('revision')}, this vlaad_ray has {REVISION}; run jobs/probe.py "
            "into another --out"
        )
    return read_record(HeadsRecord, content, str(path), "run jobs/probe.py again")


def load_heads(probes: Location) -> Heads:
    heads = Heads(read_heads(probes).heads)
    with local_copy(probes, without=".parquet") as folder:
        heads.load_state_dict(checkpoint.load_tensors(folder / WEIGHTS))
    return heads


def check(probes: Location, teacher: Location, episodes: Mapping[str, str]) -> HeadsRecord:
    """Raises UserError unless `probes` holds what the teacher's heads say of these episodes (name -> content hash)."""
    record = read_heads(probes)
    name = checkpoint.checkpoint_name(teacher)
    if record.teacher != name:
        raise UserError(
            f"--probes {probes} are of the teacher {record.teacher}, not of {teacher} ({name}); run jobs/probe.py for "
            "this one into another --out"
        )
    if missing := sorted(set(episodes) - store.probed_episodes(probes)):
        raise UserError(
            f"--probes {probes} lacks {len(missing)} of the dataset's successful episodes, first {missing[0]}; run "
            "jobs/probe.py on this dataset again"
        )
    places = [store.probes_path(probes, episode) for episode in episodes]
    facts = in_parallel(store.probes_facts, places)
    for (episode, content), footer in zip(episodes.items(), facts, strict=True):
        if footer["origin"] != {**record.origin, "content_hash": content}:
            raise UserError(
                f"{store.probes_path(probes, episode)} was made from another episode of this name, or by other heads; "
                "run jobs/probe.py on this dataset again"
            )
    return record


def columns(settings: ActDistillConfig, episode: Episode) -> Columns:
    """SEMANTICS [T, L * S] float16 and ACTIONS [T, L * K * A]; NaN where a step has no picture."""
    if settings.losses == "task":
        return {}
    assert settings.probes is not None
    probes = store.read_probes(settings.probes, episode.key.name)
    found = {SEMANTICS: probes.semantics, ACTIONS: probes.actions}
    spread = {name: np.full((len(episode), each.shape[1]), np.nan, each.dtype) for name, each in found.items()}
    for name, values in found.items():
        spread[name][probes.steps] = values
    return spread
