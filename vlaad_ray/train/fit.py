"""Train a student for epochs over frames in memory. Knows nothing of Ray; several workers only need `reduce`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.methods.method import Answers, Batch, Learner, Method, dimension_weights
from vlaad_ray.models.student.preprocess import random_shift
from vlaad_ray.train.data import Frames

WARM_UP_STEPS = 50
"""Or a tenth of the training, where that is less."""
FINAL_LR = 0.01
"""Of the peak."""
MAX_GRADIENT_NORM = 1.0
VALIDATION_BATCH = 256


@dataclass
class Progress:
    """How far training has come; with weights and optimiser state, all that resuming needs."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record of metrics an epoch."""
    finished: bool = False


@dataclass(frozen=True)
class Worker:
    """One of `size` processes that train together."""

    rank: int
    size: int
    device: torch.device
    reduce: Callable[[Tensor], Tensor]
    """Sums a tensor over all workers."""


ALONE = Worker(rank=0, size=1, device=torch.device("cpu"), reduce=lambda tensor: tensor)


@dataclass(frozen=True)
class Setup:
    """All that an epoch needs."""

    learner: Learner
    model: nn.Module
    """The learner as called in training: itself, or wrapped for several workers."""
    optimiser: torch.optim.Optimizer
    frames: Frames
    texts: Tensor
    """[texts, L] token ids, on the worker's device."""
    phases: tuple[str, ...]
    config: TrainConfig
    method: Method
    worker: Worker = ALONE

    def tally(self) -> Tally:
        return Tally(self.phases, self.method.parts, self.learner.student.config.action_dim)


def make_optimiser(learner: Learner, config: TrainConfig) -> torch.optim.AdamW:
    """Over what is trained: frozen weights get no state."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def fit(
    setup: Setup,
    progress: Progress,
    on_epoch: Callable[[Progress], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Continue from `progress` to the last epoch (or the time limit), calling `on_epoch` after each.

    Randomness depends on seed, epoch and rank alone, so a resumed run equals an uninterrupted one (unless a time limit
    sets the learning rate). `clock`: in seconds, what the time limit is measured by.
    """
    config, worker, frames = setup.config, setup.worker, setup.frames
    batch_size = max(1, config.batch_size // worker.size)
    seen = oversampled(frames, setup.learner.student.config.gripper, config.gripper_oversampling)
    # Every worker must take the same number of steps; their shares of the data differ by some frames.
    steps = max(1, int(_gathered(worker, len(seen)).min()) // batch_size)
    began = clock() - progress.seconds
    limit = config.max_minutes * 60 if config.max_minutes else math.inf

    def elapsed() -> float:
        """Seconds trained, the same on all workers, so that all stop at the same step."""
        return _gathered(worker, clock() - began).max().item() if worker.size > 1 else clock() - began

    while not progress.finished:
        start = time.monotonic()
        rng = np.random.default_rng([config.seed, progress.epoch, worker.rank])
        torch.manual_seed(int(rng.integers(2**31)))
        order = np.resize(rng.permutation(seen), (steps, batch_size))
        tally = setup.tally()
        setup.learner.train()
        for rows in order:
            done = progress.step / (steps * config.epochs)
            if config.max_minutes:
                done = max(done, elapsed() / limit)
            if done >= 1:
                break
            setup.learner.done = done
            for group in setup.optimiser.param_groups:
                group["lr"] = config.lr * learning_rate(
                    progress.step, done, min(WARM_UP_STEPS, steps * config.epochs // 10)
                )
            batch, answers, loss, parts = _forward(setup, setup.model, rows, rng)
            setup.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(setup.learner.parameters(), MAX_GRADIENT_NORM)
            # Before the step, which would break the weights; after backward, which workers must take together.
            _check_finite(config, progress, loss=loss.item(), gradient=norm.item())
            setup.optimiser.step()
            tally.add(batch, loss, parts, setup.learner.student.right(answers.image.detach(), batch.actions))
            progress.step += 1
        train = tally.summed(worker)
        samples_per_second = train.get("frames", 0) / (time.monotonic() - start)
        validation = validate(setup)
        _check_finite(config, progress, held_out_loss=validation.get("loss", 0.0))
        progress.epoch += 1
        progress.seconds = elapsed()
        progress.finished = progress.epoch >= config.epochs or progress.seconds >= limit
        progress.history.append(
            {
                "epoch": progress.epoch,
                "step": progress.step,
                "seconds": round(progress.seconds, 2),
                "lr": setup.optimiser.param_groups[0]["lr"],
                "samples_per_second": round(samples_per_second, 1),
                "train": train,
                "validation": validation,
            }
        )
        on_epoch(progress)


def oversampled(frames: Frames, gripper: int | None, times: int) -> np.ndarray:
    """Indices of the training frames, those in whose chunk the gripper's command changes `times` times."""
    if times == 1 or gripper is None:
        return frames.training
    commands = frames.actions[frames.training][:, :, gripper] > 0
    changing = frames.training[(commands != commands[:, :1]).any(1)]
    return np.concatenate([frames.training, *[changing] * (times - 1)])


def loss_weights(config: TrainConfig, actions: Tensor) -> Tensor:
    """[A] or [K, A] how much each number of a chunk weighs, of `actions` [B, K, A]."""
    numbers = dimension_weights(actions, config.pose_weights)
    if not config.chunk_weights:
        return numbers
    return torch.tensor(config.chunk_weights, device=actions.device)[:, None] * numbers


def _check_finite(config: TrainConfig, progress: Progress, **numbers: float) -> None:
    """Raise UserError for a number that is none: weights would follow, and no step makes them whole again."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            where = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
            precision = ", or try --precision fp32" if config.precision == "bf16" else ""
            raise UserError(
                f"training stopped in {where}: the {name.replace('_', ' ')} is {number}; take another --out and lower "
                f"--lr, now {config.lr:g}{precision}"
            )


def learning_rate(step: int, done: float, warm_up: int) -> float:
    """Fraction of the peak rate at optimiser step `step` when the share `done` of the training is over."""
    return min(1.0, (step + 1) / (warm_up + 1)) * max(FINAL_LR, 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def validate(setup: Setup) -> dict[str, Any]:
    """Losses and accuracies on the held-out episodes, without augmentation. {} where nothing is held out."""
    setup.learner.eval()
    tally = setup.tally()
    held_out = setup.frames.validation
    for start in range(0, len(held_out), VALIDATION_BATCH):
        rows = held_out[start : start + VALIDATION_BATCH]
        batch, answers, loss, parts = _forward(setup, setup.learner, rows, None)
        tally.add(batch, loss, parts, setup.learner.student.right(answers.image, batch.actions))
    return tally.summed(setup.worker)


def make_batch(setup: Setup, rows: np.ndarray, augment: np.random.Generator | None) -> Batch:
    """The frames `rows` on the worker's device; `augment`: with shifted pictures and noise on proprioception."""
    config, frames, device = setup.config, setup.frames, setup.worker.device

    def on_device(values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values[rows]).to(device)
        return tensor if tensor.is_floating_point() else tensor.to(torch.int64)

    images, proprio = frames.images[rows], on_device(frames.proprio)
    if augment is not None:
        images = random_shift(images, augment)
        proprio = proprio + config.proprio_noise * setup.learner.student.proprio_std * torch.randn_like(proprio)
    actions = on_device(frames.actions)
    return Batch(
        images=torch.from_numpy(images).to(device),
        proprio=proprio,
        instruction=setup.texts[on_device(frames.instruction)],
        actions=actions,
        phase=on_device(frames.phase),
        columns={name: on_device(values) for name, values in frames.own.items()},
        texts=setup.texts,
        weights=loss_weights(config, actions),
    )


def _forward(
    setup: Setup, model: nn.Module, rows: np.ndarray, augment: np.random.Generator | None
) -> tuple[Batch, Answers, Tensor, dict[str, Tensor]]:
    """The frames `rows`, answers to them, total loss and its parts."""
    config, method = setup.config, setup.method
    batch = make_batch(setup, rows, augment)
    with torch.autocast(setup.worker.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        answers = method.forward(config.method, model, batch)
    loss, parts = method.loss(config.method, setup.learner, answers, batch, config.target_sigma)
    return batch, answers, loss, parts


class Tally:
    """Sums over the frames of an epoch, from which means follow, over all workers.

    Accuracies are those of `Answers.image`: what is deployed.
    """

    def __init__(self, phases: tuple[str, ...], parts: tuple[str, ...], action_dim: int) -> None:
        self._phases, self._parts = phases, parts
        self._losses = torch.zeros(2 + len(parts), dtype=torch.float64)
        self._exact = torch.zeros(action_dim, dtype=torch.float64)
        self._near = torch.zeros(action_dim, dtype=torch.float64)
        self._by_phase = torch.zeros(len(phases), 2, dtype=torch.float64)

    def add(self, batch: Batch, loss: Tensor, parts: Mapping[str, Tensor], right: tuple[Tensor, Tensor]) -> None:
        count = len(batch.actions)
        values = [1.0, loss.item(), *(parts[name].item() if name in parts else 0.0 for name in self._parts)]
        self._losses += count * torch.tensor(values, dtype=torch.float64)
        exact, near = (each.cpu().double() for each in right)
        self._exact += exact.mean(1).sum(0)
        self._near += near.mean(1).sum(0)
        self._by_phase.index_add_(0, batch.phase.cpu(), torch.stack([torch.ones(count).double(), near.mean((1, 2))], 1))

    def summed(self, worker: Worker) -> dict[str, Any]:
        flat = torch.cat([self._losses, self._exact, self._near, self._by_phase.flatten()])
        flat = worker.reduce(flat.to(worker.device)).cpu()
        losses, exact, near, by_phase = flat.split(
            [len(self._losses), len(self._exact), len(self._near), self._by_phase.numel()]
        )
        frames = losses[0].item()
        if not frames:
            return {}
        phase_rows = by_phase.view(-1, 2).tolist()
        return {
            "frames": int(frames),
            "loss": (losses[1] / frames).item(),
            **{f"loss_{name}": (loss / frames).item() for name, loss in zip(self._parts, losses[2:], strict=True)},
            "exact": (exact.mean() / frames).item(),
            "near": (near.mean() / frames).item(),
            "exact_by_dimension": (exact / frames).tolist(),
            "near_by_dimension": (near / frames).tolist(),
            "near_by_phase": {
                name: right / count for name, (count, right) in zip(self._phases, phase_rows, strict=True) if count
            },
        }


def _gathered(worker: Worker, value: float) -> Tensor:
    """[size] every worker's value: each adds its own to a vector of zeros."""
    values = torch.zeros(worker.size, dtype=torch.float64, device=worker.device)
    values[worker.rank] = value
    return worker.reduce(values).cpu()
