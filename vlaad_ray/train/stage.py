"""Stage 3: a student from episodes and annotations, with Ray Data (decoding) and Ray Train (data-parallel workers).

Each worker gathers its share of the frames once, as uint8 in memory, then trains on it for all epochs. A run directory:

    OUT/config.json       resolved config and versions      OUT/metrics.jsonl    one line an epoch
    OUT/checkpoint/       the student (students.checkpoint)  OUT/summary.json     written last: the run is complete
    OUT/ray/              Ray Train's own: checkpoints to resume from (students.resume)
    OUT/backbone/         with --backbone random alone: the CLIP that was drawn
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.methods.vlaad.learner import Learner
from vlaad_ray.methods.vlaad.losses import loss_weights
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.models.student.presets import PRESETS
from vlaad_ray.models.student.text import TextTokenizer
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.train import prepare, resume, watch, workers
from vlaad_ray.train.data import EpisodeSource, Survey, episode_frames, gather, survey
from vlaad_ray.train.fit import Progress, Setup, Worker, fit, make_optimiser

RESUMABLE = (
    "out",
    "data",
    "annotations",
    "backbone",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "wait_for_nodes_s",
    "checkpoint_every",
    "frame_cache",
)
"""Settings that may differ when a run is continued (the content of data and backbone may not, wherever they lie)."""
REPLACED = ("ray", "backbone", "checkpoint")
"""Folders of OUT that a new run makes anew."""
PLACEMENT_GROUP = "placement_group"
"""Reported with every epoch: what the workers hold, which whoever stops a run from outside must free."""


def train(config: TrainConfig, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Train, or continue, or show what is finished; return (and write) the summary. `callbacks` are Ray Train's."""
    begin(config.out, config, prepare.reads(config), REPLACED)
    config = dataclasses.replace(
        config,
        data=config.data.resolve(),
        out=config.out.resolve(),
        annotations=config.annotations.resolve() if config.annotations and config.objective != "bc" else None,
        backbone=prepare.absolute(config.backbone),
        frame_cache=config.frame_cache.resolve() if config.frame_cache else None,
    )
    check(config)
    began = time.monotonic()
    hinted = loss_weights(config).auxiliary
    facts = survey(config.data, config.annotations, config.validation_fraction, directions=hinted)
    identity = run_identity(config, facts)
    if (config.out / "summary.json").exists():
        refuse_other_run(config.out, identity)
        return dict(store.read_json(config.out / "summary.json"))
    if (config.out / "run.json").exists():
        refuse_other_run(config.out, identity)
    else:
        for left_behind in ("ray", "backbone"):
            shutil.rmtree(config.out / left_behind, ignore_errors=True)
        write_run_record(config.out, config)
        store.write_json(config.out / "run.json", identity)
    cluster.connect()
    cli.console.print(
        f"train: {len(facts.sources)} episodes, {facts.steps} steps, {len(facts.texts)} texts; "
        f"{sum(source.held_out for source in facts.sources)} episodes held out"
    )
    resolved, student_config, tokenizer = prepare.design(config, facts.texts, config.out)
    result = run_workers(resolved, facts, student_config, tokenizer, callbacks)
    with checkpoint.replacing_directory(config.out / "checkpoint") as directory, result.as_directory() as reported:
        learner = make_learner(resolved, facts, student_config)
        resume.load_trained(Path(reported), learner)
        prepare.finish(learner.student)
        checkpoint.save_pretrained(directory, learner.student, tokenizer, training_record(resolved, facts))
        progress = resume.read_progress(Path(reported))
    summary = summarise(config, facts, progress, time.monotonic() - began)
    store.write_json(config.out / "summary.json", summary)
    return summary


def check(config: TrainConfig) -> None:
    """Complain about settings before any work starts."""
    if config.objective != "bc" and config.annotations is None:
        raise UserError(
            f"--objective {config.objective} needs --annotations DIR (or train without them: --objective bc)"
        )
    if config.image_size and (config.image_size % 16 or config.image_size < 32):
        raise UserError(f"--image-size {config.image_size}: choose a multiple of 16, 32 or more")
    if PRESETS[config.student] == "clip" and not config.backbone:
        raise UserError(
            f"--student {config.student} needs --backbone DIR_OR_NAME, a CLIP ViT-B/16 or Long-CLIP in transformers' "
            "format (or, to try things out, --backbone random)"
        )
    if PRESETS[config.student] == "small" and config.backbone:
        raise UserError("--student small has no backbone; leave --backbone out, or choose --student vlaad_158m")


def run_identity(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What a run must have in common with the one it continues."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in RESUMABLE}
    return {**settings, "data_fingerprint": facts.fingerprint, "backbone": prepare.backbone_identity(config)}


def run_workers(
    config: TrainConfig,
    facts: Survey,
    student_config: StudentConfig,
    tokenizer: TextTokenizer,
    callbacks: Sequence[UserCallback] = (),
) -> ray.train.Checkpoint:
    """Train on Ray; returns the last checkpoint. Continues from OUT/ray when there is one."""
    share = workers.share(config)
    _check_memory(config, facts, student_config, workers.memory(share, config.gpus_per_worker))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "student_config": student_config,
            "texts": tokenizer(facts.texts),
            "facts": dataclasses.replace(facts, sources=()),
            "capacity": facts.steps,
            "threads": int(share.cpus),
        },
        datasets={"frames": frame_dataset(facts, student_config, config.frame_cache)},
        # In order, so that every worker gets the same share each time.
        dataset_config=ray.train.DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
        scaling_config=workers.scaling(share, config.gpus_per_worker),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="ray",
            storage_path=str(config.out),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),  # type: ignore[arg-type]
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with watch.epochs(config.out, config.epochs):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise workers.users_error(error) or error from None
    assert result.checkpoint is not None
    return result.checkpoint


def frame_dataset(facts: Survey, student_config: StudentConfig, cache: Path | None = None) -> ray.data.Dataset:
    """One row a frame, decoded in parallel, in the order of the episodes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that a UserError stays one
    rows = [{"number": source.number} for source in facts.sources]
    sources = {source.number: source for source in facts.sources}
    texts = {text: index for index, text in enumerate(facts.texts)}
    phases = {phase: index for index, phase in enumerate(facts.phases)}
    blocks = min(len(rows), 200)
    return ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        decode_episode,  # type: ignore[arg-type]
        fn_kwargs={
            "sources": sources,
            "texts": texts,
            "phases": phases,
            "student_config": student_config,
            "cache": cache,
        },
        batch_size=1,
        num_cpus=workers.LOADER_CPUS,
        compute=ray.data.TaskPoolStrategy(min(blocks, workers.loaders())),
    )


def decode_episode(
    row: Mapping[str, np.ndarray],
    sources: Mapping[int, EpisodeSource],
    texts: Mapping[str, int],
    phases: Mapping[str, int],
    student_config: StudentConfig,
    cache: Path | None,
) -> dict[str, np.ndarray]:
    return episode_frames(sources[int(row["number"][0])], texts, phases, student_config, cache)


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each worker process: gather frames, restore if there is something to restore, train."""
    config: TrainConfig = job["config"]
    facts: Survey = job["facts"]
    torch.set_num_threads(job["threads"])
    # Ray Train logs every report, and every print() once more, through the root logger at INFO.
    logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    group = ray.util.get_current_placement_group()
    assert group is not None
    worker = Worker(rank, size, ray.train.torch.get_device(), _sum_over_workers if size > 1 else _identity)

    shard = ray.train.get_dataset_shard("frames")
    frames = gather(shard.iter_batches(batch_size=None, prefetch_batches=1), job["capacity"])
    learner = make_learner(config, facts, job["student_config"])
    learner.to(device=worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(learner, config)
    progress = Progress()
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as directory:
            progress = resume.restore(Path(directory), learner, optimiser)
    model = ray.train.torch.prepare_model(learner) if size > 1 else learner
    setup = Setup(
        learner=learner,
        model=model,
        optimiser=optimiser,
        frames=frames,
        texts=torch.tensor(job["texts"], device=worker.device),  # a copy: what Ray hands over is read-only
        phases=facts.phases,
        config=config,
        worker=worker,
    )

    def on_epoch(progress: Progress) -> None:
        record = progress.history[-1]
        due = progress.finished or progress.epoch % config.checkpoint_every == 0
        if rank == 0:
            watch.write_metrics(config.out, progress.history)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if due and rank == 0:
                resume.save(Path(folder), learner, optimiser, progress)
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({**record, PLACEMENT_GROUP: group.id.hex()}, checkpoint=saved)

    fit(setup, progress, on_epoch)


def make_learner(config: TrainConfig, facts: Survey, student_config: StudentConfig) -> Learner:
    """What is trained, as it is before the first step: the same wherever it is made."""
    student = prepare.make_student(student_config, config)
    student.proprio_mean.copy_(torch.tensor(facts.proprio_mean))
    student.proprio_std.copy_(torch.tensor(facts.proprio_std))
    return Learner(student, len(facts.phases) if loss_weights(config).auxiliary else 0)


def training_record(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What the checkpoint says about its making."""
    settings = dataclasses.asdict(config)
    named = ["student", "objective", "alpha", "epochs", "batch_size", "lr", "target_sigma", "seed", "precision"]
    if loss_weights(config).auxiliary:
        named += ["phase_weight", "direction_weight"]
    record = {**facts.provenance, **{name: settings[name] for name in named}, "software": software()}
    if PRESETS[config.student] == "clip":
        record |= {"lora_rank": config.lora_rank, "backbone": prepare.backbone_identity(config)}
    return record


def summarise(config: TrainConfig, facts: Survey, progress: Progress, seconds: float) -> dict[str, Any]:
    last = progress.history[-1]
    speeds = [record["samples_per_second"] for record in progress.history]
    return {
        "checkpoint": str(config.out / "checkpoint"),
        "student": config.student,
        "objective": config.objective,
        "alpha": config.alpha,
        "episodes": {
            "train": sum(not source.held_out for source in facts.sources),
            "validation": sum(source.held_out for source in facts.sources),
        },
        "epochs": progress.epoch,
        "steps": progress.step,
        "train": last["train"],
        "validation": last["validation"],
        "samples_per_second": float(np.median(speeds)),
        "training_seconds": round(progress.seconds, 1),
        "seconds": round(seconds, 1),
    }


def table(summary: Mapping[str, Any]) -> Table:
    """What jobs/train.py prints at the end."""
    rows: dict[str, Any] = {
        "objective": f"{summary['objective']}, alpha {summary['alpha']}",
        "episodes": f"{summary['episodes']['train']} + {summary['episodes']['validation']} held out",
        "epochs": summary["epochs"],
        "samples per second": f"{summary['samples_per_second']:.0f}",
        "training": f"{summary['training_seconds'] / 60:.1f} min",
    }
    for name in ("train", "validation"):
        if metrics := summary[name]:
            rows[name] = f"loss {metrics['loss']:.3f}, exact {metrics['exact']:.1%}, near {metrics['near']:.1%}"
    return cli.key_value_table("Student", {**rows, "checkpoint": summary["checkpoint"]})


def refuse_other_run(out: Path, identity: Mapping[str, Any]) -> None:
    before = store.read_json(out / "run.json")
    now = json.loads(json.dumps(identity, default=str))
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{out} holds a run with other settings ({name}: {before.get(name)} there, {now.get(name)} now); "
            "choose another --out, or delete it to start anew"
        )


def _check_memory(config: TrainConfig, facts: Survey, student_config: StudentConfig, free: float) -> None:
    """`free`: bytes of the nodes that the workers may run on."""
    frames = facts.steps * len(student_config.cameras) * student_config.image_size**2 * 3
    batch = 0 if config.gpus_per_worker else config.batch_size * prepare.activation_bytes(student_config)
    if frames + batch > free:
        raise UserError(
            f"{config.data}: {facts.steps} steps need {frames / 1e9:.1f} GB of memory, a batch {batch / 1e9:.1f} GB, "
            f"the nodes for it have {free / 1e9:.1f} GB; lower {'--batch-size' if batch > frames else '--image-size'}, "
            "or add machines and --workers"
        )


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor
