"""Training of a student on random frames: samples a second of the steps that training itself takes (train.fit)."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlaad_ray.annotate import rules
from vlaad_ray.configs import TrainConfig
from vlaad_ray.experiments.bench.gpu import motion
from vlaad_ray.experiments.bench.latency import peak_memory, reset_peak_memory
from vlaad_ray.files import replacing_directory
from vlaad_ray.models.student import STUDENTS, backbone, presets
from vlaad_ray.models.student.checkpoint import CONFIG, save_pretrained
from vlaad_ray.models.student.clip import ClipConfig
from vlaad_ray.models.student.preprocess import chunk_targets
from vlaad_ray.models.student.vlaad_158m import Vlaad158mConfig
from vlaad_ray.train import fit, prepare
from vlaad_ray.train.data import Frames
from vlaad_ray.train.survey import Survey
from vlaad_ray.types import LIBERO

TINY = ClipConfig(
    image_size=32,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=64,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_mlp=64,
    vocabulary=1024,
)
EPISODES = 4
"""Whose actions and descriptions go with the random pictures."""


@dataclass(frozen=True)
class TrainingRequest:
    """A few epochs of a few steps each; the first does not count, kernels are chosen there."""

    student: str
    """Preset."""
    preset_size: str
    """full or tiny, of a preset with a backbone."""
    folder: str
    """Where a backbone with random weights is, or goes."""
    device: str
    precision: str
    image_size: int
    batch_size: int
    """Halved until it fits the GPU's memory."""
    steps: int
    """An epoch."""
    epochs: int = 3


def random_settings(preset_size: str, folder: Path) -> Vlaad158mConfig:
    """vlaad_158m's, with a CLIP of random weights in folder/backbone."""
    place = folder / f"backbone-{preset_size}"
    if not place.is_dir():
        backbone.write_random(place, motion.INSTRUCTIONS, ClipConfig() if preset_size == "full" else TINY, seed=0)
    return Vlaad158mConfig(backbone=str(place))


def random_student(preset_size: str, folder: Path) -> Path:
    """Checkpoint directory of a vlaad_158m with random weights, as it is deployed."""
    directory = folder / f"student-{preset_size}"
    if not directory.is_dir():
        preset = STUDENTS["vlaad_158m"]
        wish = presets.Wish(motion.INSTRUCTIONS, folder=folder)
        settings, config, tokenizer = presets.design(preset, random_settings(preset_size, folder), wish)
        student = presets.make(preset, settings, config, seed=0)
        preset.finish(student)
        with replacing_directory(directory, CONFIG) as place:
            save_pretrained(place, student, tokenizer, {"render": None})
    return directory


def time_training(request: TrainingRequest) -> dict[str, Any]:
    """Samples a second, the batch that fitted, and the share of a step that goes into making its batch."""
    setup = make_setup(request)
    for tries in range(request.batch_size.bit_length()):
        batch_size = request.batch_size >> tries
        measured = _time_batch_size(setup, batch_size, request)
        if measured is not None:
            trained = [each.numel() for each in setup.learner.parameters() if each.requires_grad]
            return {"batch_size": batch_size, "trainable": sum(trained), **measured}
        gc.collect()
        torch.cuda.empty_cache()
    raise torch.OutOfMemoryError("out of memory with a batch of 1")


def _time_batch_size(setup: fit.Setup, batch_size: int, request: TrainingRequest) -> dict[str, Any] | None:
    """None: it does not fit the GPU's memory."""
    config = dataclasses.replace(setup.config, batch_size=batch_size)
    frames = dataclasses.replace(setup.frames, training=np.arange(batch_size * request.steps))
    setup = dataclasses.replace(setup, config=config, frames=frames)
    progress = fit.Progress()
    reset_peak_memory(request.device)
    try:
        fit.fit(setup, progress, lambda _: None)
    except torch.OutOfMemoryError:
        return None
    rate = statistics.median(record["samples_per_second"] for record in progress.history[1:])
    return {
        "samples_per_second": rate,
        "waiting_share": making_seconds(setup) * rate / batch_size,
        **peak_memory(request.device),
    }


def making_seconds(setup: fit.Setup, batches: int = 5) -> float:
    """To pick, shift and upload a batch's frames. The device has nothing else to do then: a step ends with its loss
    read, and the next begins with this.
    """
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(batches):
        rows = rng.permutation(setup.frames.training)[: setup.config.batch_size]
        batch = fit.make_batch(setup, rows, rng)
        batch.images[0, 0, 0, 0].cpu()  # comes after all that was queued before
    return (time.perf_counter() - began) / batches


def make_setup(request: TrainingRequest) -> fit.Setup:
    """As a worker of training has it: the objective and settings that training has by default."""
    folder = Path(request.folder)
    network = random_settings(request.preset_size, folder) if request.student == "vlaad_158m" else None
    config = TrainConfig(
        data=folder,
        out=folder,
        student=request.student,
        network=network,
        epochs=request.epochs,
        image_size=request.image_size,
        precision=request.precision,  # type: ignore[arg-type]
    )
    config = prepare.complete(config)
    preset, method = prepare.find_preset(config.student), prepare.find_method(config.objective)
    episodes = [motion.episode(number) for number in range(EPISODES)]
    annotations = [rules.by_rules(each, rules.nine_phases(each), 9) for each in episodes]
    columns = [method.columns(*each) for each in zip(episodes, annotations, strict=True)]
    described = {text for each in columns for values in each.values() for text in values}
    proprio = np.concatenate([each.proprio for each in episodes])
    facts = Survey(
        sources=(),
        texts=tuple(sorted({*motion.INSTRUCTIONS, *described})),
        phases=tuple(sorted({label for each in annotations for label in each.phases})),
        embodiment=LIBERO,
        proprio_mean=proprio.mean(0),
        proprio_std=proprio.std(0) + 1e-3,
        fingerprint="random",
        provenance={},
    )
    config, student_config, tokenizer = prepare.design(config, facts, folder)
    learner = prepare.make_learner(config, facts, student_config, preset, method)
    device = torch.device(request.device)
    learner.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    texts = {text: number for number, text in enumerate(facts.texts)}
    phases = {label: number for number, label in enumerate(facts.phases)}
    count = request.batch_size * request.steps
    rows = np.random.default_rng(0).integers(0, len(proprio), count)
    size, cameras = student_config.image_size, len(student_config.cameras)
    frames = Frames(
        images=np.random.default_rng(1).integers(0, 256, (count, cameras, size, size, 3), np.uint8),
        proprio=proprio[rows],
        actions=np.concatenate([chunk_targets(each.actions, config.chunk) for each in episodes])[rows],
        instruction=np.array([texts[each.instruction] for each in episodes for _ in each.phases])[rows],
        phase=np.array([phases[label] for each in annotations for label in each.phases])[rows],
        training=np.arange(count),
        validation=np.arange(0),
        own={name: np.array([texts[text] for each in columns for text in each[name]])[rows] for name in columns[0]},
    )
    return fit.Setup(
        learner=learner,
        model=learner,
        optimiser=fit.make_optimiser(learner, config),
        frames=frames,
        texts=torch.tensor(tokenizer(facts.texts), device=device),
        phases=facts.phases,
        config=config,
        method=method,
        worker=dataclasses.replace(fit.ALONE, device=device),
    )
