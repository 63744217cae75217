"""Stage: a checkpoint becomes a policy for another runtime, and has to answer as torch does on real frames."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import ExportConfig, Location, UserError
from vlaad_ray.deploy import exported, loading
from vlaad_ray.deploy.backends import Precision
from vlaad_ray.deploy.backends.graphs import Sample
from vlaad_ray.deploy.convert import check_backend, convert
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.files import filling, local_copy
from vlaad_ray.models.student.checkpoint import checkpoint_name, from_pretrained
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.types import LIBERO, ActionChunk, Observation

BARS: dict[Precision, float] = {"fp32": 0.99, "bf16": 0.99, "int8": 0.75}
"""Least agreement, unless told otherwise."""
EPISODES = 64
"""Frames are spread over this many episodes."""
BATCH = 16
"""Frames that torch answers at once."""
CLOSE = 2 / 256
"""The width of one of 256 bins over [-1, 1]."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Convert, compare, and make the directory loadable if it agrees. Returns (and writes) the summary."""
    begin(config.out, config, {"--checkpoint": config.checkpoint, "--data": config.data})
    check_backend(config.backend, config.precision)
    with local_copy(config.checkpoint) as checkpoint:
        return _export(config, checkpoint)


def _export(config: ExportConfig, checkpoint: Path) -> dict[str, Any]:
    bar = config.bar or BARS[config.precision]
    quantised = config.precision == "int8"
    cameras = from_pretrained(checkpoint).student.config.cameras
    compared, calibration = real_frames(config.data, cameras, config.frames, config.calibration if quantised else 0)
    write_run_record(config.out, config)
    with ExitStack() as undo, cli.progress(f"export to {config.backend} {config.precision}", 2) as advance:
        undo.callback((config.out / exported.MANIFEST).unlink, missing_ok=True)  # unless it has been found to agree
        began = time.monotonic()
        policy, size = build(checkpoint, config.out, config.backend, config.precision, calibration)
        seconds = time.monotonic() - began
        advance(f"converted in {seconds:.0f} s")
        found = compare(checkpoint, policy, compared)
        shares = " and ".join(f"{100 * share:.2f} % of {what}" for what, share in decisive(found).items())
        advance(f"{shares} agree")
        accepted = min(decisive(found).values()) >= bar
        if accepted:
            undo.pop_all()
    summary = {
        "source": checkpoint_name(checkpoint),
        "backend": config.backend,
        "precision": config.precision,
        "agreement": found,
        "bar": bar,
        "accepted": accepted,
        "calibration_frames": len(calibration),
        "megabytes": size / 1e6,
        "seconds": seconds,
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    if not accepted:
        raise UserError(
            f"{config.backend} {config.precision} agrees with torch on {shares}, below the bar of {100 * bar:g} %: "
            f"{config.out} will not load; choose a finer --precision, or a lower --bar if closed loop says it is enough"
        )
    return summary


def build(
    checkpoint: Location,
    out: Location,
    backend: str,
    precision: Precision,
    calibration: Sequence[Observation],
) -> tuple[StudentPolicy, int]:
    """Write an exported directory -> (its policy, bytes on disk)."""
    pretrained = from_pretrained(checkpoint)
    samples = calibration_samples(checkpoint, calibration)
    with filling(out, exported.MANIFEST) as folder:
        manifest = convert(pretrained, checkpoint_name(checkpoint), folder, backend, precision, samples)
        exported.write_manifest(folder, manifest)
        policy = StudentPolicy.from_pretrained(folder)
        return policy, sum((folder / name).stat().st_size for name in manifest.files)


def calibration_samples(checkpoint: Location, observations: Sequence[Observation]) -> list[Sample]:
    """What the network sees of each."""
    policy = StudentPolicy.from_pretrained(checkpoint)
    return [policy.prepare([each]) for each in observations]


def compare(checkpoint: Location, policy: StudentPolicy, observations: Sequence[Observation]) -> dict[str, Any]:
    """How far `policy` answers as torch in fp32 does, frame by frame, on its own way from pixels to logits."""
    reference = StudentPolicy.from_pretrained(checkpoint)
    batches = [observations[start : start + BATCH] for start in range(0, len(observations), BATCH)]
    expected, given = (
        np.concatenate([each.backend.output(*each.prepare(batch)) for batch in batches]) for each in (reference, policy)
    )
    if not np.isfinite(given).all():
        raise UserError(f"{policy.backend.name} answers real frames with NaN or infinity; choose a finer --precision")
    told = reference.backend.decode(expected), policy.backend.decode(given)
    found = agreement(*told, reference.gripper)
    if loading.describe(checkpoint).interface.bins:
        del found["close"]
        found = {**same_bins(expected, given), **found}
    return {"frames": len(observations), "instructions": len({each.instruction for each in observations}), **found}


def same_bins(expected: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """Two sets of logits [F, K, A, N]: shares in [0, 1] of likeliest bins that are the same, and at most neighbours."""
    moved = torch.from_numpy(expected.argmax(-1) - given.argmax(-1)).abs()
    return {
        "greedy_bins": float((moved == 0).double().mean()),
        "greedy_bins_within_1": float((moved <= 1).double().mean()),
    }


def agreement(
    expected: Sequence[ActionChunk], given: Sequence[ActionChunk], gripper: int | None = LIBERO.gripper
) -> dict[str, float]:
    """Shares in [0, 1] of actions that are close and gripper commands that are the same; differences of actions.

    The gripper's are left out of closeness and differences.
    """
    actions, others = (torch.from_numpy(np.stack([chunk.actions for chunk in of])) for of in (expected, given))
    apart = (actions - others).abs()
    arm = apart[..., [place for place in range(apart.shape[-1]) if place != gripper]]
    found = {"close": float((arm < CLOSE).double().mean())}
    if gripper is not None:
        found["gripper"] = float((apart[..., gripper] == 0).double().mean())
    return {**found, "max_abs_difference": float(arm.max()), "mean_abs_difference": float(arm.mean())}


def decisive(found: Mapping[str, float]) -> dict[str, float]:
    """Those shares of an agreement that must reach the bar, by what they are shares of."""
    names = {"greedy_bins": "bins", "close": "actions", "gripper": "gripper commands"}
    return {word: found[name] for name, word in names.items() if name in found}


def real_frames(
    data: Location, cameras: Sequence[str], compared: int, calibration: int
) -> tuple[list[Observation], list[Observation]]:
    """Frames spread over a dataset: (`compared` of them, `calibration` others). No episode gives to both.

    Raises UserError where the dataset is too small.
    """
    paths = sorted(store.list_episodes(data), key=lambda path: hashlib.sha256(path.stem.encode()).digest())
    if len(paths) < 2:
        raise UserError(f"--data: {data} holds {len(paths)} episodes; two are the least")
    middle = len(paths) // 2 if calibration else len(paths)
    return (
        _frames(data, paths[:middle], cameras, compared, "--frames"),
        _frames(data, paths[middle:], cameras, calibration, "--calibration"),
    )


def _frames(
    data: Location, paths: Sequence[Location], cameras: Sequence[str], wanted: int, flag: str
) -> list[Observation]:
    found: list[Observation] = []
    for number, path in enumerate(paths):
        if len(found) >= wanted:
            break
        episode = store.read_episode(path)
        seen = [episode.images[name] for name in cameras]
        steps = [step for step in range(len(episode)) if all(images[step] is not None for images in seen)]
        share = -(-(wanted - len(found)) // max(1, min(len(paths), EPISODES) - number))
        for step in steps[:: max(1, len(steps) // share)][:share]:
            images = {name: image for name in cameras if (image := episode.images[name][step]) is not None}
            found.append(Observation(episode.instruction, episode.proprio[step], images))
    if len(found) < wanted:
        raise UserError(f"--data: {data} gives {len(found)} frames with pictures; collect more, or lower {flag}")
    return found[:wanted]


def show(summary: dict[str, Any]) -> Table:
    said = summary["agreement"]
    shares = {
        "greedy_bins": "same likeliest bin",
        "greedy_bins_within_1": "within one bin",
        "close": f"actions apart by less than {CLOSE:g}",
        "gripper": "same gripper command",
    }
    rows = {
        "checkpoint": summary["source"],
        "frames compared with torch fp32": said["frames"],
        "bar": f"{100 * summary['bar']:g} %",
        **{word: f"{100 * said[name]:.2f} %" for name, word in shares.items() if name in said},
        "decoded actions apart, at most": f"{said['max_abs_difference']:.4f}",
        "decoded actions apart, mean": f"{said['mean_abs_difference']:.5f}",
        "size": f"{summary['megabytes']:.1f} MB",
    }
    return cli.key_value_table(f"Exported to {summary['backend']}, {summary['precision']}", rows)
