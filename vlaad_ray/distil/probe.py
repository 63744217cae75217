"""Stage 1 of ActDistill: train the heads on the frozen teacher, then keep what they say of every pictured frame.

OUT/training/              the training of the heads, a run like any other
OUT/heads.safetensors      the heads                OUT/heads.json     their shape, teacher and hash
OUT/probes/<episode>.parquet                        what they say (store.probes), an episode at a time
OUT/summary.json           written last
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import ray.data
import torch
from rich.table import Table
from torch import Tensor

from vlaad_ray import store, train
from vlaad_ray.configs import Location, ProbeConfig, UserError
from vlaad_ray.distil.timing import milliseconds
from vlaad_ray.distil.training import Frames, frames_of, from_teacher, loaded
from vlaad_ray.methods.actdistill import kept
from vlaad_ray.methods.actdistill.kept import HeadsRecord
from vlaad_ray.methods.actdistill.probing import heads_config
from vlaad_ray.methods.actdistill.teacher import teacher_config
from vlaad_ray.methods.method import dimension_weights
from vlaad_ray.models.student.checkpoint import checkpoint_name
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.heads import Heads
from vlaad_ray.models.vla.mini import MiniVla
from vlaad_ray.runtime import cluster, places, record
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.summaries import ProbeSummary
from vlaad_ray.train.survey import survey
from vlaad_ray.types import Episode


@dataclass(frozen=True)
class Reading:
    """What a task needs that reads an episode."""

    out: Location
    teacher: Location
    heads: HeadsRecord
    pose_weights: tuple[float, float, float]
    target_sigma: float
    device: str


def probe(config: ProbeConfig) -> ProbeSummary:
    """Train heads, or continue; keep what is missing; return (and write) the summary.

    Raises UserError for a directory that holds the heads of another teacher, or of other data.
    """
    settings, out = config.train, config.train.out.resolve()
    record.begin(out, config, {"--data": settings.data, "--checkpoint": config.checkpoint})
    places.check(config)
    began = time.monotonic()
    teacher = config.checkpoint.resolve()
    training = from_teacher(settings, teacher, "probe", config.heads)
    training = replace(training, out=out / "training")
    name = checkpoint_name(teacher)
    if (out / kept.HEADS).exists() and (found := kept.read_heads(out)).teacher != name:
        raise UserError(
            f"--out {out} holds probes of the teacher {found.teacher}, --checkpoint is {name}; choose another"
        )
    if not (out / record.RECORD).exists():
        record.write_run_record(out, config)
    train.train(training)
    weights = training.out / "checkpoint" / kept.WEIGHTS
    heads = kept.adopt_heads(out, weights, heads_config(config.heads, teacher_config(teacher, "--checkpoint")), name)
    more = [(place.resolve(), None) for place in settings.more_data]  # whole paths: tasks run in other directories
    facts = survey(settings.data.resolve(), None, settings.validation_fraction, more=more)
    held_out = {source.path.stem for source in facts.sources if source.held_out}
    cluster.connect(ray_data=True)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours instead of one an operator
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # warns of its progress bars being off
    device = "cuda" if config.gpus_per_task else "cpu"
    reading = Reading(out, teacher, heads, settings.pose_weights, settings.target_sigma, device)
    paths = [source.path for source in facts.sources]
    records = over_episodes(paths, functools.partial(keep, reading=reading), "probing", config.gpus_per_task)
    if errors := [each["error"] for each in records if "error" in each]:
        raise UserError(f"{len(errors)} of {len(paths)} episodes could not be read; the first: {errors[0]}")
    # Kept as they were first: a budget in milliseconds is not to change under a student that is trained to it.
    before = store.read_summary(out, ProbeSummary)
    times = before.milliseconds if before else timed(teacher, paths)
    summary = summarise(heads, records, held_out, times, round(time.monotonic() - began, 1))
    store.write_summary(out, summary)
    return summary


def timed(teacher: Location, paths: Sequence[Location]) -> tuple[float, float]:
    """timing.milliseconds on the first pictured frame."""
    network, tokenizer = loaded(teacher, checkpoint_name(teacher), "cpu")
    return milliseconds(network, next(each for path in paths for each in frames_of(path, network, tokenizer, "cpu")))


def keep(path: Location, episode: Episode, facts: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Store what the heads say of an episode, unless it is there -> its sums over the frames."""
    name = episode.key.name
    origin = {**reading.heads.origin, "content_hash": facts["content_hash"]}
    measured = existing(reading.out, name, origin)
    skipped = measured is not None
    if measured is None:
        network, tokenizer = loaded(reading.teacher, reading.heads.teacher, reading.device)
        heads = loaded_heads(reading.out, reading.heads.weights, reading.device)
        parts = [say(network, heads, frames, reading) for frames in frames_of(path, network, tokenizer, reading.device)]
        probes, measured = joined(parts, heads)
        store.write_probes(reading.out, name, probes, origin, measured)
    return {"episode": name, "skipped": skipped, **measured}


def existing(out: Location, episode: str, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured when an episode's probes were made; None: they are missing, other or unreadable."""
    if not store.probes_path(out, episode).exists():
        return None
    try:
        store.read_probes(out, episode)
        facts = store.probes_facts(store.probes_path(out, episode))
    except UserError:
        return None
    measured: dict[str, Any] = facts["measured"]
    return measured if facts["origin"] == origin else None


@functools.lru_cache(maxsize=1)
def loaded_heads(probes: Location, weights: str, device: str) -> Heads:
    """Once in a process. `weights`: their hash."""
    return kept.load_heads(probes).to(device).eval().requires_grad_(False)


class Said:
    """Of some frames."""

    def __init__(self, steps: np.ndarray, semantics: Tensor, actions: Tensor, errors: Tensor, needed: Tensor) -> None:
        self.steps, self.errors, self.needed = steps, errors.double().cpu(), needed.double().cpu()
        self.semantics, self.actions = (each.flatten(1).float().cpu().numpy() for each in (semantics, actions))


def say(network: MiniVla, heads: Heads, frames: Frames, reading: Reading) -> Said:
    """What the heads say of the teacher on these frames; their errors; how much the loss depends on each layer."""
    with torch.no_grad():
        inputs = network.embed(frames.images, frames.proprio, frames.instruction)
    inputs = inputs._replace(hidden=inputs.hidden.requires_grad_())
    states = gated(network, inputs)
    weights = dimension_weights(frames.actions, reading.pose_weights)
    output = network.readout(states[-1], inputs)
    loss = len(frames.steps) * network.imitation_loss(output, frames.actions, weights, reading.target_sigma)
    with torch.no_grad():
        known = heads(states, inputs.present)
        errors = (known.actions - frames.actions[:, None]).square().mean((2, 3)).sum(0)
    return Said(frames.steps, known.semantics, known.actions, errors, dependence(loss, [inputs.hidden, *states]))


def dependence(loss: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Sum over the frames of |<dL/dh_l, h_l - h_(l-1)>| for each layer: [L] (GateProbe, arXiv 2606.27755).

    loss: the sum of the frames' losses; states: L + 1 of [B, T, D], the first before any layer.
    """
    slopes = torch.autograd.grad(loss, states[1:])
    steps = [after - before for before, after in pairwise(states)]
    moved = [(slope * step).sum((1, 2)) for slope, step in zip(slopes, steps, strict=True)]
    return torch.stack([each.detach().abs().sum() for each in moved])


def joined(parts: Sequence[Said], heads: Heads) -> tuple[store.Probes, dict[str, Any]]:
    """The frames of an episode together, and their sums."""
    config = heads.config
    widths = config.layers * config.semantics, config.layers * config.chunk * config.action_dim
    empty = [np.empty((0, width), np.float32) for width in widths]
    probes = store.Probes(
        np.concatenate([np.empty(0, np.int32), *(part.steps for part in parts)]),
        np.concatenate([empty[0], *(part.semantics for part in parts)]),
        np.concatenate([empty[1], *(part.actions for part in parts)]),
    )
    zeros = torch.zeros(config.layers, dtype=torch.float64)
    return probes, {
        "frames": len(probes.steps),
        "errors": sum((part.errors for part in parts), zeros).tolist(),
        "gate_probe": sum((part.needed for part in parts), zeros).tolist(),
    }


def summarise(
    heads: HeadsRecord,
    records: Sequence[Mapping[str, Any]],
    held_out: set[str],
    milliseconds: tuple[float, float],
    seconds: float,
) -> ProbeSummary:
    unseen = [each for each in records if each["episode"] in held_out] or list(records)
    seen = [each for each in records if each["episode"] not in held_out]
    skipped = sum(each["skipped"] for each in records)
    return ProbeSummary(
        teacher=heads.teacher,
        heads=heads.weights,
        kind=heads.heads.kind,
        layers=heads.heads.layers,
        probed=len(records) - skipped,
        skipped=skipped,
        frames=sum(each["frames"] for each in records),
        errors=mean_of(unseen, "errors"),
        gate_probe=mean_of(seen, "gate_probe"),
        milliseconds=milliseconds,
        seconds=seconds,
    )


def mean_of(records: Sequence[Mapping[str, Any]], name: str) -> tuple[float, ...]:
    """[L] over all frames. In the order of their names, so that it is the same whoever was first."""
    ordered = sorted(records, key=lambda each: str(each["episode"]))
    sums = np.sum([each[name] for each in ordered], axis=0)
    return tuple((sums / max(1, sum(each["frames"] for each in ordered))).tolist())


def show(summary: ProbeSummary) -> Table:
    """What jobs/probe.py prints at the end."""
    table = Table(title=f"What {summary.teacher} knows of the action, layer by layer", title_justify="left")
    for column in ("layer", "squared error, held out", "GateProbe"):
        table.add_column(column, justify="right")
    for layer, (error, needed) in enumerate(zip(summary.errors, summary.gate_probe, strict=True)):
        table.add_row(str(layer), f"{error:.4f}", f"{needed:.3g}")
    table.caption = f"{summary.frames} frames; {summary.probed} episodes probed, {summary.skipped} were already"
    return table
