"""Training on Ray: Ray Data decodes pictures; Ray Train's workers each gather a share of the frames and train on it."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from vlaad_ray.configs import Location, TrainConfig, UserError
from vlaad_ray.methods.method import Method
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.models.student.presets import Preset
from vlaad_ray.runtime import places
from vlaad_ray.train import prepare, resume, watch, workers
from vlaad_ray.train.data import ColumnsOf, episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, Worker, fit, make_optimiser
from vlaad_ray.train.survey import EpisodeSource, Survey
from vlaad_ray.train.trackers import Tracker

PLACEMENT_GROUP = "placement_group"
"""Reported with every epoch: what the workers hold, which whoever stops a run from outside must free."""


@dataclass(frozen=True)
class Job:
    """What workers get. Entries of the doors go as functions: a worker looks up no names."""

    config: TrainConfig
    preset: Preset
    method: Method
    student_config: StudentConfig
    facts: Survey
    tokens: np.ndarray
    """[texts, L] int64."""
    trackers: tuple[Tracker, ...]
    threads: int = 0
    """Of each worker; settled by `run_workers`."""


def run_workers(job: Job, callbacks: Sequence[UserCallback] = ()) -> ray.train.Checkpoint:
    """Train on Ray; returns the last checkpoint. Continues from OUT/ray when there is one."""
    config, facts = job.config, job.facts
    share = workers.share(config)
    _check_memory(job, workers.memory(share, config.gpus_per_worker))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "job": dataclasses.replace(job, facts=dataclasses.replace(facts, sources=()), threads=int(share.cpus)),
            "capacity": facts.frames(job.student_config.cameras),
        },
        datasets={"frames": frame_dataset(job)},
        # In order, so that every worker gets the same share each time.
        dataset_config=ray.train.DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
        scaling_config=workers.scaling(share, config.gpus_per_worker),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="ray",
            **places.storage(config.out),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),  # type: ignore[arg-type]
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with watch.epochs(config.out, config.epochs):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise workers.users_error(error, config.out) or error from None
    assert result.checkpoint is not None
    return result.checkpoint


def frame_dataset(job: Job) -> ray.data.Dataset:
    """One row a frame, decoded in parallel, in the order of the episodes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that a UserError stays one
    facts = job.facts
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
            "student_config": job.student_config,
            "columns": prepare.columns_of(job.method, job.config.method),
            "cache": job.config.frame_cache,
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
    columns: ColumnsOf,
    cache: Location | None,
) -> dict[str, np.ndarray]:
    return episode_frames(sources[int(row["number"][0])], texts, phases, student_config, columns, cache)


def train_worker(loop: dict[str, Any]) -> None:
    """Runs in each worker process: gather frames, restore if there is something to restore, train."""
    job: Job = loop["job"]
    config, facts = job.config, job.facts
    torch.set_num_threads(job.threads)
    # Ray Train logs every report, and every print() once more, through the root logger at INFO.
    logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    group = ray.util.get_current_placement_group()
    assert group is not None
    worker = Worker(rank, size, ray.train.torch.get_device(), _sum_over_workers if size > 1 else _identity)

    shard = ray.train.get_dataset_shard("frames")
    frames = gather(shard.iter_batches(batch_size=None, prefetch_batches=1), loop["capacity"])
    learner = prepare.make_learner(config, facts, job.student_config, job.preset, job.method)
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
        texts=torch.tensor(job.tokens, device=worker.device),  # a copy: what Ray hands over is read-only
        phases=facts.phases,
        config=config,
        method=job.method,
        worker=worker,
    )

    logs = [tracker.open(config.out, progress.history) for tracker in job.trackers] if rank == 0 else []

    def on_epoch(progress: Progress) -> None:
        record = progress.history[-1]
        due = progress.finished or progress.epoch % config.checkpoint_every == 0
        for log in logs:
            log(record)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if due and rank == 0:
                resume.save(Path(folder), learner, optimiser, progress)
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({**record, PLACEMENT_GROUP: group.id.hex()}, checkpoint=saved)

    fit(setup, progress, on_epoch)


def _check_memory(job: Job, free: float) -> None:
    """`free`: bytes of the nodes that the workers may run on."""
    config, student_config = job.config, job.student_config
    count = job.facts.frames(student_config.cameras)
    frames = count * len(student_config.cameras) * student_config.image_size**2 * 3
    batch = 0 if config.gpus_per_worker else config.batch_size * job.preset.activation_bytes(student_config)
    if frames + batch > free:
        raise UserError(
            f"{config.data}: {count} frames need {frames / 1e9:.1f} GB of memory, a batch {batch / 1e9:.1f} GB, "
            f"the nodes for it have {free / 1e9:.1f} GB; lower {'--batch-size' if batch > frames else '--image-size'}, "
            "or add machines and --workers"
        )


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor
