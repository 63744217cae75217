"""Stage 3: a student from episodes and annotations, with Ray Data (decoding) and Ray Train (data-parallel workers).

Each worker gathers its share of the frames once, as uint8 in memory, then trains on it for all epochs. A run directory:

    OUT/config.json       resolved config and versions      OUT/metrics.jsonl    one line an epoch
    OUT/checkpoint/       the student (students.checkpoint)  OUT/summary.json     written last: the run is complete
    OUT/ray/              Ray Train's own: checkpoints to resume from
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayTaskError
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from rich.table import Table

from vlaad_ray import cli, cluster, store
from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.provenance import software, write_run_record
from vlaad_ray.students import checkpoint
from vlaad_ray.students.data import EpisodeSource, Survey, episode_frames, gather, survey
from vlaad_ray.students.fit import Progress, Setup, Worker, fit, make_optimiser
from vlaad_ray.students.model import Student, StudentConfig
from vlaad_ray.students.small import SmallConfig, SmallStudent
from vlaad_ray.students.text import TextTokenizer, load_tokenizer, train_tokenizer

RESUMABLE = ("out", "data", "annotations", "workers", "cpus_per_worker", "gpus_per_worker", "checkpoint_every")
"""Settings that may differ when a run is continued (the data's content may not, wherever it lies)."""
OPTIMISER, PROGRESS = "optimiser.safetensors", "progress.json"
LOADER_CPUS = 0.25
"""CPUs Ray Data reserves for each decoding task. The workers leave half a CPU unreserved, so that decoding, which ends
before training begins, never waits for a CPU that they hold."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, or continue, or show what is finished; return (and write) the summary."""
    config = dataclasses.replace(
        config,
        data=config.data.resolve(),
        out=config.out.resolve(),
        annotations=config.annotations.resolve() if config.annotations and config.objective != "bc" else None,
    )
    check(config)
    began = time.monotonic()
    facts = survey(config.data, config.annotations, config.validation_fraction)
    identity = run_identity(config, facts)
    if (config.out / "summary.json").exists():
        _refuse_other_run(config.out, identity)
        return dict(store.read_json(config.out / "summary.json"))
    if (config.out / "run.json").exists():
        _refuse_other_run(config.out, identity)
    else:
        shutil.rmtree(config.out / "ray", ignore_errors=True)
        write_run_record(config.out, config)
        store.write_json(config.out / "run.json", identity)
    cluster.connect()
    cli.console.print(
        f"train: {len(facts.sources)} episodes, {facts.steps} steps, {len(facts.texts)} texts; "
        f"{sum(source.held_out for source in facts.sources)} episodes held out"
    )
    result = run_workers(config, facts)
    with checkpoint.replacing_directory(config.out / "checkpoint") as directory, result.as_directory() as reported:
        for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.TOKENIZER):
            shutil.copy(Path(reported) / name, directory / name)
        progress = Progress(**store.read_json(Path(reported) / PROGRESS))
    summary = summarise(config, facts, progress, time.monotonic() - began)
    store.write_json(config.out / "summary.json", summary)
    return summary


def check(config: TrainConfig) -> None:
    """Complain about settings before any work starts."""
    if config.objective == "dual_path" and config.annotations is None:
        raise UserError("--objective dual_path needs --annotations DIR (or train without them: --objective bc)")
    if config.image_size % 16 or config.image_size < 32:
        raise UserError(f"--image-size {config.image_size}: choose a multiple of 16, 32 or more")
    for flag, value in (("epochs", config.epochs), ("batch-size", config.batch_size)):
        if value < 1:
            raise UserError(f"--{flag} must be 1 or more, not {value}")
    if config.workers < 0:
        raise UserError(f"--workers must not be negative: {config.workers}")
    if config.checkpoint_every < 1 or config.chunk < 1:
        raise UserError("--checkpoint-every and --chunk must be 1 or more")
    if not 0 <= config.validation_fraction < 1:
        raise UserError(f"--validation-fraction must lie in 0 to below 1, not {config.validation_fraction}")


def run_identity(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What a run must have in common with the one it continues."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in RESUMABLE}
    return {**settings, "data_fingerprint": facts.fingerprint}


def run_workers(config: TrainConfig, facts: Survey) -> ray.train.Checkpoint:
    """Train on Ray; returns the last checkpoint. Continues from OUT/ray when there is one."""
    student_config = SmallConfig(image_size=config.image_size, proprio=config.proprio, chunk=config.chunk)
    tokenizer = train_tokenizer(facts.texts, student_config.text_length)
    student_config = dataclasses.replace(student_config, vocabulary=tokenizer.vocabulary)
    all_cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = config.workers or (1 if config.gpus_per_worker else all_cpus)
    cpus = config.cpus_per_worker or max(1, all_cpus // workers)
    _check_memory(config, facts, student_config)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / checkpoint.TOKENIZER)
        tokenizer_json = (Path(folder) / checkpoint.TOKENIZER).read_text()
    resources = {"CPU": max(0.5, cpus - 0.5)}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "student_config": student_config,
            "tokenizer": tokenizer_json,
            "facts": dataclasses.replace(facts, sources=()),
            "capacity": facts.steps,
            "threads": cpus,
        },
        datasets={"frames": frame_dataset(facts, student_config)},
        # In order, so that every worker gets the same share each time.
        dataset_config=ray.train.DataConfig(execution_options=ray.data.ExecutionOptions(preserve_order=True)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=config.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="ray",
            storage_path=str(config.out),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        raise _users_error(error) or error from None
    assert result.checkpoint is not None
    return result.checkpoint


def frame_dataset(facts: Survey, student_config: StudentConfig) -> ray.data.Dataset:
    """One row a frame, decoded in parallel, in the order of the episodes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that a UserError stays one
    rows = [{"number": source.number} for source in facts.sources]
    sources = {source.number: source for source in facts.sources}
    texts = {text: index for index, text in enumerate(facts.texts)}
    phases = {phase: index for index, phase in enumerate(facts.phases)}
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), 200)).map_batches(
        decode_episode,  # type: ignore[arg-type]
        fn_kwargs={"sources": sources, "texts": texts, "phases": phases, "student_config": student_config},
        batch_size=1,
        num_cpus=LOADER_CPUS,
    )


def decode_episode(
    row: Mapping[str, np.ndarray],
    sources: Mapping[int, EpisodeSource],
    texts: Mapping[str, int],
    phases: Mapping[str, int],
    student_config: StudentConfig,
) -> dict[str, np.ndarray]:
    return episode_frames(sources[int(row["number"][0])], texts, phases, student_config)


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each worker process: gather frames, restore if there is something to restore, train."""
    config: TrainConfig = job["config"]
    facts: Survey = job["facts"]
    torch.set_num_threads(job["threads"])
    # Ray Train logs every report, and every print() once more, through the root logger at INFO.
    logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, size, ray.train.torch.get_device(), _sum_over_workers if size > 1 else _identity)

    shard = ray.train.get_dataset_shard("frames")
    frames = gather(shard.iter_batches(batch_size=None, prefetch_batches=1), job["capacity"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.TOKENIZER
        path.write_text(job["tokenizer"])
        tokenizer = load_tokenizer(path, job["student_config"].text_length)
    torch.manual_seed(config.seed)
    student = SmallStudent(job["student_config"])
    student.proprio_mean.copy_(torch.tensor(facts.proprio_mean))
    student.proprio_std.copy_(torch.tensor(facts.proprio_std))
    student.to(device=worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(student, config)
    progress = Progress()
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as directory:
            progress = restore(Path(directory), student, optimiser)
    model = ray.train.torch.prepare_model(student) if size > 1 else student
    setup = Setup(
        student=student,
        model=model,
        optimiser=optimiser,
        frames=frames,
        texts=torch.from_numpy(tokenizer(facts.texts)).to(worker.device),
        phases=facts.phases,
        config=config,
        worker=worker,
    )

    def on_epoch(progress: Progress) -> None:
        record = progress.history[-1]
        due = progress.finished or progress.epoch % config.checkpoint_every == 0
        if rank == 0:
            write_metrics(config.out, progress)
            print(epoch_line(record, config.epochs), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if due and rank == 0:
                save(Path(folder), student, tokenizer, optimiser, progress, training_record(config, facts))
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(record, checkpoint=saved)

    fit(setup, progress, on_epoch)


def save(
    directory: Path,
    student: Student,
    tokenizer: TextTokenizer,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    training: Mapping[str, Any],
) -> None:
    """A checkpoint to resume from: the student as it is deployed, beside optimiser state and progress."""
    checkpoint.save_pretrained(directory, student, tokenizer, training)
    moments = {
        f"{name}/{kind}": value
        for name, parameter in student.named_parameters()
        for kind, value in optimiser.state[parameter].items()
    }
    checkpoint.save_tensors(directory / OPTIMISER, moments)
    store.write_json(directory / PROGRESS, dataclasses.asdict(progress))


def restore(directory: Path, student: Student, optimiser: torch.optim.Optimizer) -> Progress:
    """Put weights and optimiser state back; returns the progress they belong to."""
    student.load_state_dict(checkpoint.load_tensors(directory / checkpoint.WEIGHTS))
    moments = checkpoint.load_tensors(directory / OPTIMISER)
    for name, parameter in student.named_parameters():
        kinds = {kind: moments[f"{name}/{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {
            kind: value.to(parameter.device) if kind == "step" else torch.empty_like(parameter).copy_(value)
            for kind, value in kinds.items()
        }
    return Progress(**store.read_json(directory / PROGRESS))


def training_record(config: TrainConfig, facts: Survey) -> dict[str, Any]:
    """What the checkpoint says about its making."""
    settings = dataclasses.asdict(config)
    named = ("student", "objective", "alpha", "epochs", "batch_size", "lr", "target_sigma", "seed", "precision")
    return {**facts.provenance, **{name: settings[name] for name in named}, "software": software()}


def write_metrics(out: Path, progress: Progress) -> None:
    """metrics.jsonl afresh each epoch, so that it never holds an epoch twice after a resume."""
    with store.replacing(out / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in progress.history))


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    train, held_out = record["train"], record["validation"]
    line = f"epoch {record['epoch']}/{epochs}"
    for name, metrics in (("train", train), ("held out", held_out)):
        if metrics:
            line += f"  {name}: loss {metrics['loss']:.3f}, near {100 * metrics['near']:.1f} %"
    return f"{line}  {record['samples_per_second']:.0f} samples/s, {record['seconds'] / 60:.1f} min"


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


def _refuse_other_run(out: Path, identity: Mapping[str, Any]) -> None:
    before = store.read_json(out / "run.json")
    now = json.loads(json.dumps(identity, default=str))
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{out} holds a run with other settings ({name}: {before.get(name)} there, {now.get(name)} now); "
            "choose another --out, or delete it to start anew"
        )


def _check_memory(config: TrainConfig, facts: Survey, student_config: StudentConfig) -> None:
    need = facts.steps * len(student_config.cameras) * student_config.image_size**2 * 3
    free = ray.cluster_resources()["memory"]
    if need > free:
        raise UserError(
            f"{config.data}: {facts.steps} steps need {need / 1e9:.1f} GB of memory, Ray has {free / 1e9:.1f} GB; "
            "lower --image-size, or add machines and --workers"
        )


def _users_error(error: WorkerGroupError) -> UserError | None:
    """What the user can mend (a picture that does not decode), freed from the wrappings of Ray Data and Ray Train."""
    for failure in error.worker_failures.values():
        while isinstance(failure, RayTaskError):
            failure = failure.cause
        if isinstance(failure, UserError):
            return UserError(str(failure).splitlines()[0])  # Ray Data adds lines on how to retry
    return None


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor
