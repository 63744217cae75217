"""What is measured, in which order and within which limits; what there is already stays.

OUT/records/NAME.json    one measurement: what was asked, what came of it, on which machine
OUT/logs/NAME.log        what its process printed
OUT/gpu.md               the page, written anew after each
OUT/summary.json         all records, written last
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import BenchGpuConfig, UserError, read_record
from vlaad_ray.experiments.bench.gpu import alone, page
from vlaad_ray.experiments.bench.gpu.record import Record
from vlaad_ray.experiments.bench.policy import cpu_name
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, software, write_run_record

MACHINE_S = 300.0
"""Longest that a look at the GPU may take."""
TINY_S = 900.0
"""Longest that anything tiny may take: machines that try it are at other work as well."""
COLD = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""A compiled network's first call takes as long as it does on a machine that has not seen it."""


@dataclass(frozen=True)
class Piece:
    """One measurement."""

    name: str
    """Begins with its section's, one of page.SECTIONS."""
    kind: str
    """Of measure.KINDS."""
    request: Mapping[str, Any]
    limit_s: float
    packages: Mapping[str, str] = field(default_factory=dict)
    """Module that it needs -> the extra of vlaad-ray that brings it."""
    environment: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def section(self) -> str:
        return self.name.partition("-")[0]


def pieces(config: BenchGpuConfig) -> list[Piece]:
    """All that can be measured on the device, the most wanted first. Compiling, which may take long, comes later."""
    students = student(config)
    late = [each for each in students if each.request["mode"] == "compiled"]
    soon = [each for each in students if each not in late]
    ordered = [*soon, *teacher(config), *training(config), *late, *rendering(config), *annotation(config)]
    return ordered if config.size == "full" else [replace(each, limit_s=TINY_S) for each in ordered]


def student(config: BenchGpuConfig) -> list[Piece]:
    full = config.size == "full"
    common = {
        "preset_size": config.size,
        "folder": str(config.out.resolve() / "made"),
        "device": config.device,
        "image_size": 224 if full else 32,
        "threads": 2,
        "calls": 300 if full else 5,
        "warm": 50 if full else 1,
        "batches": [1, 8, 32] if full else [1, 2],
    }
    modes = {"eager": 60.0, "graphs": 60.0, "compiled": 200.0}
    if config.device == "cpu":
        del modes["graphs"]
    return [
        Piece(
            f"student-{dtype}-{mode}",
            "student",
            {**common, "dtype": dtype, "mode": mode},
            limit_s,
            {"transformers": "train", "peft": "train"},
            COLD,
        )
        for mode, limit_s in modes.items()
        for dtype in ("fp32", "bf16")
    ]


def teacher(config: BenchGpuConfig) -> list[Piece]:
    full = config.size == "full"
    request = {
        "size": config.size,
        "device": config.device,
        "dtype": "bf16",
        "batches": [1, 8, 32] if full else [1, 2],
        "repeats": 10 if full else 2,
    }
    return [Piece("teacher-openvla", "teacher", request, 150.0, {"transformers": "openvla"})]


def training(config: BenchGpuConfig) -> list[Piece]:
    full = config.size == "full"
    batch = {"batch_size": 128 if full else 8, "steps": 12 if full else 2}
    common = {
        "preset_size": config.size,
        "folder": str(config.out.resolve() / "made"),
        "device": config.device,
        **batch,
    }
    packages = {"transformers": "train", "peft": "train"}
    large, small = {"student": "vlaad_158m", "image_size": 0}, {"student": "small", "image_size": 96 if full else 32}
    return [
        Piece(f"training-{name}-{precision}", "training", {**common, **which, "precision": precision}, 90.0, packages)
        for name, which, precision in (("158m", large, "bf16"), ("158m", large, "fp32"), ("small", small, "bf16"))
    ]


def rendering(config: BenchGpuConfig) -> list[Piece]:
    full = config.size == "full"
    request = {
        "steps": 60 if full else 2,
        "pixels": 128 if full else 32,
        "device": config.device,
        "limit_s": 60.0 if full else 400.0,
        "logs": str(config.out.resolve() / "logs"),
    }
    return [Piece("rendering-egl", "rendering", request, 150.0, {"libero": "sim", "mujoco": "sim"})]


def annotation(config: BenchGpuConfig) -> list[Piece]:
    full = config.size == "full"
    request = {
        "size": config.size,
        "device": config.device,
        "folder": str(config.out.resolve() / "made"),
        "data": None if config.data is None else str(config.data.resolve()),
        "episodes": 64 if full else 6,  # of 12 questions each
        "questions": 768 if full else 64,
        "batch_size": 16 if full else 1,
        "limit_s": 120.0,
        "log": str(config.out.resolve() / "logs" / "vlm.log"),
    }
    return [Piece("annotation-vllm", "annotation", request, 300.0, {"vllm": "annotate"})]


def bench_gpu(config: BenchGpuConfig) -> dict[str, Any]:
    """Measure what is missing; write the page and the summary. What fails is a line there, and the rest goes on."""
    out = folder(config)
    begin(out, config, {"--data": config.data})
    all_pieces = pieces(config)
    wanted = [each for each in all_pieces if not config.only or each.name.startswith(config.only)]
    if not wanted:
        raise UserError(f"--only: none of {', '.join(each.name for each in all_pieces)} begins with that")
    write_run_record(out, config)
    machine = look_at_machine(config)
    deadline = time.monotonic() + 60 * config.minutes
    measured = 0
    with cli.progress("bench gpu", len(wanted), every_line=True) as advance:
        for piece in wanted:
            record = known(out, piece, machine)
            if record is None or record.problem:
                record = measure(config, piece, machine, deadline)
                store.write_json(place(out, piece), record)
                measured += 1
            advance(f"{piece.name} {record.problem or 'measured'}")
            write_page(config, all_pieces, machine)
    records = write_page(config, all_pieces, machine)
    summary = {"machine": machine, "measured_now": measured, "records": records, **software()}
    store.write_json(out / "summary.json", summary)
    return summary


def folder(config: BenchGpuConfig) -> Path:
    """--out. Raises UserError where it is in a store, to which no process can print."""
    if not isinstance(config.out, Path):
        raise UserError(f"--out {config.out}: this machine is measured; give a folder on it")
    return config.out


def measure(config: BenchGpuConfig, piece: Piece, machine: Mapping[str, Any], deadline: float) -> Record:
    began = time.monotonic()
    limit_s = min(piece.limit_s, deadline - began)
    problem = lacking(piece, config.device)
    if not problem and limit_s < piece.limit_s / 4:
        problem = f"left out: {config.minutes:g} minutes were over; run the same command again"
    done = alone.Done(problem=problem)
    if not problem:
        log = folder(config) / "logs" / f"{piece.name}.log"
        done = alone.measure(piece.kind, dict(piece.request), log, limit_s, piece.environment)
    return Record(
        name=piece.name,
        request=dict(piece.request),
        machine=dict(machine),
        seconds=round(time.monotonic() - began, 1),
        answer=done.answer,
        problem=done.problem,
    )


def known(out: Path, piece: Piece, machine: Mapping[str, Any]) -> Record | None:
    """What came of it before, asked in the same way on such a GPU."""
    path = place(out, piece)
    if not path.is_file():
        return None
    record = read_record(Record, store.read_json(path), str(path), "delete it")
    same = record.request == dict(piece.request) and record.machine["gpu"] == machine["gpu"]
    return record if same else None


def place(out: Path, piece: Piece) -> Path:
    return out / "records" / f"{piece.name}.json"


def lacking(piece: Piece, device: str) -> str:
    """What must be installed first, in a line; empty: nothing."""
    for module, extra in piece.packages.items():
        remedy = f"pip install 'vlaad-ray[{extra}]'"
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed; {remedy}"
        if module == "vllm" and device == "cuda" and not installed("vllm"):
            return f"the vllm that is installed computes on CPUs alone; {remedy} in an environment of its own"
    return ""


def installed(distribution: str) -> bool:
    return any(each.metadata["Name"].lower() == distribution for each in metadata.distributions())


def look_at_machine(config: BenchGpuConfig) -> dict[str, Any]:
    """GPU, driver, CPU and versions. Raises UserError where torch cannot compute on the device.

    A process of its own looks: its hold on the GPU would take memory from all measurements.
    """
    log = folder(config) / "logs" / "machine.log"
    done = alone.measure("machine", {"device": config.device}, log, MACHINE_S)
    if done.problem:
        raise UserError(done.problem)
    made = software()
    return {
        **done.answer,
        "driver": driver() if done.answer["gpu"] else None,
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": made["python"],
        "versions": made["versions"],
        "git_revision": made["git_revision"],
    }


def driver() -> str:
    """NVIDIA's, as its own tool says it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return said[0].strip() if said else "unknown"


def write_page(config: BenchGpuConfig, all_pieces: Sequence[Piece], machine: Mapping[str, Any]) -> list[Record]:
    """From what is stored now; returns that."""
    found = {each.name: known(folder(config), each, machine) for each in all_pieces}
    records = [record for record in found.values() if record is not None]
    missing = [name for name, record in found.items() if record is None]
    with store.replacing(config.page or config.out / "gpu.md") as temporary:
        temporary.write_text(page.page(config.size, machine, records, missing))
    return records


def show(summary: Mapping[str, Any]) -> Table:
    """What was measured, and what not."""
    title = f"{summary['machine']['gpu'] or 'CPU'}: {summary['measured_now']} measured now"
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", "what came of it"):
        table.add_column(column)
    for record in summary["records"]:
        table.add_row(record.name, f"{record.seconds:.0f}", record.problem or page.headline(record))
    return table
