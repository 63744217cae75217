"""The stage: look at the data, train or continue, write the student. A run directory:

OUT/config.json       resolved config and versions      OUT/metrics.jsonl    one line an epoch
OUT/checkpoint/       the student (models.student.checkpoint)
OUT/ray/              Ray Train's own: checkpoints to resume from (train.resume)
OUT/backbone/         with --backbone random alone: the CLIP that was drawn
OUT/tensorboard/      with --trackers tensorboard
OUT/run.json          what a run that continues this one must have in common with it
OUT/summary.json      written last: the run is complete
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.train.v2.api.callback import UserCallback
from rich.table import Table

from vlaad_ray import files, store
from vlaad_ray.configs import Location, TrainConfig, UserError, content
from vlaad_ray.methods.method import Material
from vlaad_ray.models.student import checkpoint
from vlaad_ray.runtime import cli, cluster, places
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.summaries import SplitCounts, TrainSummary
from vlaad_ray.train import prepare, resume
from vlaad_ray.train.distributed import Job, run_workers
from vlaad_ray.train.fit import Progress
from vlaad_ray.train.survey import Survey, survey
from vlaad_ray.train.trackers import find_trackers

REPLACED = ("ray", "backbone", "checkpoint")
"""Folders of OUT that a new run makes anew."""


def train(config: TrainConfig, callbacks: Sequence[UserCallback] = ()) -> TrainSummary:
    """Train, or continue, or show what is finished; return (and write) the summary. `callbacks` are Ray Train's."""
    places.check(config)
    config = prepare.complete(config)
    preset, method = prepare.find_preset(config.student), prepare.find_method(config.objective)
    begin(config.out, config, prepare.reads(config), REPLACED)
    check(config)
    began = time.monotonic()
    more = zip(config.more_data, config.more_annotations or (None,) * len(config.more_data), strict=True)
    facts = survey(config.data, config.annotations, config.validation_fraction, method, list(more))
    identity = {**run_identity(config, facts), **method.check(config.method, material(config, facts))}
    if (finished := store.read_summary(config.out, TrainSummary)) is not None:
        refuse_other_run(config.out, identity)
        return finished
    if (config.out / "run.json").exists():
        refuse_other_run(config.out, identity)
    else:
        for left_behind in ("ray", "backbone"):
            files.remove_tree(config.out / left_behind)
        write_run_record(config.out, config)
        store.write_json(config.out / "run.json", identity)
    cluster.connect()
    cli.console.print(
        f"train: {len(facts.sources)} episodes, {facts.steps} steps, {len(facts.texts)} texts; "
        f"{sum(source.held_out for source in facts.sources)} episodes held out"
    )
    resolved, student_config, tokenizer = prepare.design(config, facts, config.out)
    tokens, trackers = tokenizer(facts.texts), find_trackers(config.trackers)
    result = run_workers(Job(resolved, preset, method, student_config, facts, tokens, trackers), callbacks)
    place = config.out / "checkpoint"
    with files.replacing_directory(place, checkpoint.CONFIG) as directory, result.as_directory() as reported:
        learner = prepare.make_learner(resolved, facts, student_config, preset, method)
        resume.load_trained(Path(reported), learner)
        student = method.finish(learner)
        preset.finish(student)
        checkpoint.save_pretrained(directory, student, tokenizer, training_record(resolved, facts))
        method.leave(learner, directory)
        progress = resume.read_progress(Path(reported))
    summary = summarise(config, facts, progress, time.monotonic() - began)
    store.write_summary(config.out, summary)
    return summary


def check(config: TrainConfig) -> None:
    """Complain about settings before any work starts. `config` is complete."""
    preset, method = prepare.find_preset(config.student), prepare.find_method(config.objective)
    if method.annotated and config.annotations is None:
        raise UserError(
            f"--objective {config.objective} needs --annotations DIR (or train without them: --objective bc)"
        )
    if len(config.more_annotations) != (len(config.more_data) if config.annotations else 0):
        raise UserError(
            f"--more-annotations: {len(config.more_annotations)} for {len(config.more_data)} of --more-data; each "
            "dataset has its own, or none has"
        )
    if config.chunk_weights and len(config.chunk_weights) != config.chunk:
        raise UserError(f"--chunk-weights: {len(config.chunk_weights)} for the {config.chunk} actions of --chunk")
    preset.check(config.network, config.image_size)
    find_trackers(config.trackers)


def material(config: TrainConfig, facts: Survey) -> Material:
    """What the method of a training is used on."""
    return Material(config.start_from, {source.path.stem: source.content for source in facts.sources}, facts.phases)


def run_identity(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What a run must have in common with the one it continues. `config` is complete.

    Settings of network and method beside the others, as in the runs of versions that knew no such parts.
    """
    settings = content(config)
    own = {**settings.pop("network"), **settings.pop("method")}
    identity = prepare.find_preset(config.student).identity(config.network)
    if config.start_from is not None:
        identity = {**identity, "start_from": checkpoint.checkpoint_name(config.start_from)}
    return {**settings, **own, **identity, "data_fingerprint": facts.fingerprint}


def training_record(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What the checkpoint says about its making."""
    named = ("student", "objective", "epochs", "batch_size", "lr", "target_sigma", "seed", "precision")
    settings = content(config)
    return {
        **facts.provenance,
        **{name: settings[name] for name in named},
        **settings["method"],
        **settings["network"],
        **prepare.find_preset(config.student).identity(config.network),
        **({"started_from": checkpoint.checkpoint_name(config.start_from)} if config.start_from else {}),
        "software": software(),
    }


def summarise(config: TrainConfig, facts: Survey, progress: Progress, seconds: float) -> TrainSummary:
    last = progress.history[-1]
    speeds = [record["samples_per_second"] for record in progress.history]
    held_out = sum(source.held_out for source in facts.sources)
    return TrainSummary(
        checkpoint=str(config.out / "checkpoint"),
        student=config.student,
        objective=config.objective,
        method=content(config.method),
        episodes=SplitCounts(train=len(facts.sources) - held_out, validation=held_out),
        epochs=progress.epoch,
        steps=progress.step,
        train=last["train"],
        validation=last["validation"],
        samples_per_second=float(np.median(speeds)),
        training_seconds=round(progress.seconds, 1),
        seconds=round(seconds, 1),
    )


def table(summary: TrainSummary) -> Table:
    """What jobs/train.py prints at the end."""
    rows: dict[str, Any] = {
        "objective": ", ".join([summary.objective, *(f"{name} {value}" for name, value in summary.method.items())]),
        "episodes": f"{summary.episodes.train} + {summary.episodes.validation} held out",
        "epochs": summary.epochs,
        "samples per second": f"{summary.samples_per_second:.0f}",
        "training": f"{summary.training_seconds / 60:.1f} min",
    }
    for name, metrics in (("train", summary.train), ("validation", summary.validation)):
        if metrics:
            rows[name] = f"loss {metrics['loss']:.3f}, exact {metrics['exact']:.1%}, near {metrics['near']:.1%}"
    return cli.key_value_table("Student", {**rows, "checkpoint": summary.checkpoint})


def refuse_other_run(out: Location, identity: Mapping[str, Any]) -> None:
    """Raises UserError where a setting that counts is another than that of the run in `out`.

    What else stands there was said by older versions, of settings that the student or the objective doesn't have.
    """
    before = store.read_json(out / "run.json")
    now = json.loads(json.dumps(identity, default=str))
    differing = [name for name in sorted(now) if before.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"{out} holds a run with other settings ({name}: {before.get(name)} there, {now[name]} now); "
            "choose another --out, or delete it to start anew"
        )
