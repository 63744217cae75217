"""A student in every backend at hand against OpenVLA-7B, in one run: latency, throughput, memory, size, work."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from vlaad_ray import export, store
from vlaad_ray.configs import BenchPolicyConfig, Location, UserError, location
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.backends import BACKENDS
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.experiments.bench.latency import StudentRequest, TeacherRequest, random_observations
from vlaad_ray.files import replacing_directory
from vlaad_ray.models.student import STUDENTS, presets
from vlaad_ray.models.student.checkpoint import (
    CONFIG,
    Pretrained,
    checkpoint_name,
    from_pretrained,
    of_architecture,
    save_pretrained,
)
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record
from vlaad_ray.types import Observation

PAPER = {"student_hz": 12.5, "teacher_hz": 3.8, "parameters_ratio": 44, "teacher_mb": 14_000, "student_mb": 640}
"""VLA-AD's own figures (arXiv 2605.16241), on an RTX 4090."""
NEEDS = {
    "torch-fp32": (),
    "torch-bf16": (),
    "onnx-fp32": ("onnxruntime", "onnx", "onnxscript"),
    "openvino-fp32": ("openvino", "onnx", "onnxscript"),
    "openvino-bf16": ("openvino", "onnx", "onnxscript"),
    "openvino-int8": ("openvino", "onnx", "onnxscript", "nncf"),
    "cuda-fp32": (),
    "cuda-bf16": (),
}
"""Backend -> packages that it takes, to be exported and to run."""
LAYERS = 32
"""Of OpenVLA's language model."""
FEW_LAYERS = (1, 3)
"""Depths from which the whole is extrapolated."""
TEACHER_BYTES = 20e9
"""The weights in bf16 are 15 GB; drawing them takes some more."""
NOISE_FRAMES = 32
"""To calibrate int8 on where there is no data."""


def bench_policy(config: BenchPolicyConfig) -> dict[str, Any]:
    """Each measurement is a process of its own, one after the other."""
    begin(
        config.out,
        config,
        {"--policy": None if config.policy in STUDENTS else location(config.policy), "--data": config.data},
    )
    names = config.backends or at_hand()
    if unknown := [name for name in names if name not in NEEDS]:
        raise UserError(f"--backends: {unknown[0]!r} is none of {', '.join(NEEDS)}")
    write_run_record(config.out, config)
    checkpoint = find_checkpoint(config)
    compared, calibration = frames(config, checkpoint)
    teacher = measure_teacher(config)
    backends: dict[str, dict[str, Any]] = {}
    with cli.progress(f"bench {checkpoint_name(checkpoint)}", len(names)) as advance:
        for name in names:
            backends[name] = measure(name, checkpoint, config, compared, calibration)
            advance(f"{name} {backends[name]['inferences_per_second']:.1f} inferences/s")
    pretrained = from_pretrained(checkpoint)
    flops = work(pretrained)
    summary = {
        "policy": config.policy,
        "checkpoint": checkpoint_name(checkpoint),
        "parameters": parameters(pretrained),
        "flops_per_inference": flops,
        "backends": backends,
        "teacher": teacher,
        "ratio": None if teacher is None else ratio(backends, teacher),
        "paper": PAPER,
        "image_size": config.image_size,
        "execute": config.execute,
        "threads": config.threads,
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg(),
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def at_hand() -> tuple[str, ...]:
    """What can be exported and run here."""
    installed = {
        name: all(importlib.util.find_spec(package) for package in packages) for name, packages in NEEDS.items()
    }
    return tuple(
        name for name in NEEDS if installed[name] and (torch.cuda.is_available() or not name.startswith("cuda"))
    )


def find_checkpoint(config: BenchPolicyConfig) -> Location:
    """The checkpoint directory that was named, or one of a preset with random weights, made here."""
    if config.policy not in STUDENTS:
        return location(config.policy)
    directory = config.out / f"random-{config.policy}"
    if not directory.is_dir():
        texts = [observation.instruction for observation in random_observations(1, 8)]
        preset = STUDENTS[config.policy]
        drawn = preset.drawn(preset.config())
        settings, student_config, tokenizer = presets.design(preset, drawn, presets.Wish(texts, folder=config.out))
        student = presets.make(preset, settings, student_config, seed=0)
        preset.finish(student)
        with replacing_directory(directory, CONFIG) as folder:
            save_pretrained(folder, student, tokenizer, {"render": None})
    return directory


def frames(config: BenchPolicyConfig, checkpoint: Location) -> tuple[list[Observation], list[Observation]]:
    """(to compare on, to calibrate on)."""
    if config.data is None:
        return [], random_observations(NOISE_FRAMES, config.image_size)
    cameras = from_pretrained(checkpoint).student.config.cameras
    return export.real_frames(config.data, cameras, config.frames, config.frames // 2)


def measure(
    name: str,
    checkpoint: Location,
    config: BenchPolicyConfig,
    compared: Sequence[Observation],
    calibration: Sequence[Observation],
) -> dict[str, Any]:
    """Export if need be, then time and, with frames at hand, compare with torch in fp32."""
    runtime, _, precision = name.partition("-")
    directory, device, dtype = checkpoint, "cpu", None
    if runtime in BACKENDS:
        directory = config.out / (name if config.data is None else f"{name}-calibrated")
        if not exported.is_export(directory) or exported.read_manifest(directory).source != checkpoint_name(checkpoint):
            samples = calibration if precision == "int8" else ()
            export.build(checkpoint, directory, runtime, precision, samples)  # type: ignore[arg-type]
    else:
        device, dtype = ("cpu" if runtime == "torch" else runtime), precision
    request = StudentRequest(str(directory), device, dtype, config.image_size, config.threads, config.calls)
    timed = ask("student", request)
    timed["actions_per_second"] = timed["inferences_per_second"] * config.execute
    if compared:
        policy = StudentPolicy.from_pretrained(directory, device=device, dtype=dtype)  # type: ignore[arg-type]
        timed["agreement"] = export.compare(checkpoint, policy, compared)
    return timed


def measure_teacher(config: BenchPolicyConfig) -> dict[str, Any] | None:
    """OpenVLA-7B on the GPU if there is one; whole, or extrapolated from few layers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fits = (torch.cuda.mem_get_info()[0] if device == "cuda" else available_memory()) >= TEACHER_BYTES
    how = config.teacher if config.teacher != "auto" else "full" if fits else "blocks"
    if how == "none":
        return None
    depths = (None,) if how == "full" else FEW_LAYERS
    runs = []
    with cli.progress(f"OpenVLA-7B, {how}", len(depths)) as advance:
        for layers in depths:
            runs.append(ask("teacher", TeacherRequest(layers, device, config.threads, config.teacher_calls)))
            advance(f"{runs[-1]['p50_ms']:.0f} ms with {layers or LAYERS} layers")
    if how == "full":
        return {"method": "full", "device": device, **runs[0], "actions_per_second": runs[0]["inferences_per_second"]}
    measured = dict(zip(map(str, depths), runs, strict=True))
    return {"method": "blocks", "device": device, **extrapolate(*runs), "measured": measured}


def extrapolate(fewer: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """From FEW_LAYERS to LAYERS: each layer adds the same time, parameters, and two bytes of memory a parameter.

    Of each depth the fastest call counts: what else runs on the machine disturbs it least, and it favours the teacher.
    """
    if more["fastest_ms"] <= fewer["fastest_ms"]:
        raise UserError(
            f"OpenVLA took {fewer['fastest_ms']:.0f} ms with {FEW_LAYERS[0]} layer, {more['fastest_ms']:.0f} ms with "
            f"{FEW_LAYERS[1]}: the machine is too busy to extrapolate; run again on a quiet one, or give --teacher none"
        )
    steps = (LAYERS - FEW_LAYERS[0]) / (FEW_LAYERS[1] - FEW_LAYERS[0])
    whole = {name: fewer[name] + steps * (more[name] - fewer[name]) for name in ("fastest_ms", "parameters")}
    rate = 1000 / whole["fastest_ms"]
    memory = fewer["peak_memory_mb"] + 2 * (whole["parameters"] - fewer["parameters"]) / 1e6
    return {"inferences_per_second": rate, "actions_per_second": rate, **whole, "peak_memory_mb": memory}


def ask(kind: str, request: StudentRequest | TeacherRequest) -> dict[str, Any]:
    """Run vlaad_ray.experiments.bench.latency in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "vlaad_ray.experiments.bench.latency",
        kind,
        json.dumps(dataclasses.asdict(request)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(request.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"timing failed with exit status {done.returncode}: {' '.join(command)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ratio(backends: dict[str, dict[str, Any]], teacher: dict[str, Any]) -> float | None:
    """Inferences a second of the best backend on the teacher's device, against the teacher's. None: no such backend."""
    rates = [
        entry["inferences_per_second"]
        for name, entry in backends.items()
        if name.startswith("cuda") == (teacher["device"] == "cuda")
    ]
    return max(rates) / teacher["inferences_per_second"] if rates else None


def parameters(pretrained: Pretrained) -> dict[str, int]:
    """total and trainable: in training, adapters of the default rank included; deployed: as in the checkpoint.

    Changes the student, which is of no use afterwards.
    """
    student = pretrained.student.requires_grad_(True)
    deployed = sum(each.numel() for each in student.parameters())
    preset = of_architecture(student.config.architecture, "the student")
    preset.adapt(student, preset.config())
    total = sum(each.numel() for each in student.parameters())
    trainable = sum(each.numel() for each in student.parameters() if each.requires_grad)
    return {"total": total, "trainable": trainable, "deployed": deployed}


@torch.no_grad()
def work(pretrained: Pretrained) -> dict[str, int]:
    """FLOPs (two for each multiplication with addition) of one `infer`, and of a text, which is encoded once."""
    student, config = pretrained.student, pretrained.student.config
    tokens = torch.from_numpy(pretrained.tokenizer([random_observations(1, 8)[0].instruction]))
    images = torch.zeros(1, len(config.cameras), config.image_size, config.image_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as texts:
        text = student.encode_text(tokens)
    with FlopCounterMode(display=False) as inference:
        student.decide(student.perceive(images, torch.from_numpy(np.zeros((1, 8), np.float32)), text))
    return {"infer": inference.get_total_flops(), "text": texts.get_total_flops()}


def available_memory() -> int:
    """Bytes that a new process may take."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


def show(summary: dict[str, Any]) -> Table:
    size, teacher = summary["parameters"], summary["teacher"]
    table = Table(title=f"{summary['policy']}, {size['total'] / 1e6:.1f} M parameters", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("infer/s", "actions/s", "p50 ms", "p99 ms", "first", "MB", "bins"):
        table.add_column(column, justify="right")
    for name, entry in summary["backends"].items():
        table.add_row(
            name,
            *(f"{entry[each]:.1f}" for each in ("inferences_per_second", "actions_per_second", "p50_ms", "p99_ms")),
            *(f"{entry[each]:.0f}" for each in ("first_ms", "peak_memory_mb")),
            f"{100 * entry['agreement']['greedy_bins']:.2f} %" if "agreement" in entry else "",
        )
    if teacher:
        name = "OpenVLA-7B" if teacher["method"] == "full" else "OpenVLA-7B*"
        rate = f"{teacher['inferences_per_second']:.3g}"
        milliseconds = f"{1000 / teacher['inferences_per_second']:.0f}"
        table.add_row(name, rate, rate, milliseconds, "", "", f"{teacher['peak_memory_mb']:.0f}")
    table.add_section()
    table.add_row("paper", str(PAPER["student_hz"]), "", "", "", "", str(PAPER["student_mb"]))
    table.add_row("paper, teacher", str(PAPER["teacher_hz"]), "", "", "", "", str(PAPER["teacher_mb"]))
    notes = ["MB: most that the process held; bins: likeliest ones equal to torch fp32's; paper: RTX 4090"]
    if teacher:
        faster = f"{summary['ratio']:.1f}× as fast (paper 3.3×), " if summary["ratio"] else ""
        notes.append(f"against the teacher {faster}{teacher['parameters'] / size['total']:.0f}× smaller (paper 44×)")
        if teacher["method"] == "blocks":
            notes.append(f"* from {' and '.join(teacher['measured'])} of its {LAYERS} language layers")
    table.caption = "\n".join([*notes, f"{summary['flops_per_inference']['infer'] / 1e9:.1f} GFLOP an inference"])
    return table
