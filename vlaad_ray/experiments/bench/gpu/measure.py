"""What runs in a measurement's process: python -m vlaad_ray.experiments.bench.gpu.measure KIND REQUEST FILE.

The request is JSON, the fields of a record; the answer goes to FILE in JSON. Each kind imports what it needs and no
more: some of it would set up a GPU or a renderer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlaad_ray.configs import users_errors


def machine(device: str) -> dict[str, Any]:
    """The GPU as torch sees it. Raises UserError where torch cannot compute on the device."""
    import torch

    from vlaad_ray.deploy.loading import check_device

    check_device(device)
    if device != "cuda":
        return {"gpu": None}
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "gpu_memory_gib": found.total_memory / 2**30,
        "compute_capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        # "highest" is fp32 itself, others allow TF32.
        "fp32_products": torch.get_float32_matmul_precision(),
    }


def student(preset_size: str, folder: str, **request: Any) -> dict[str, Any]:
    """Whole `infer` of a student with random weights, made in `folder` unless it is there."""
    from vlaad_ray.experiments.bench.gpu.student_training import random_student
    from vlaad_ray.experiments.bench.latency import StudentRequest, time_student

    directory = random_student(preset_size, Path(folder))
    return time_student(StudentRequest(str(directory), **request))


def teacher(size: str, device: str, dtype: str, batches: list[int], repeats: int) -> dict[str, Any]:
    """OpenVLA: latency, throughput and memory of each batch; None for one that the GPU's memory does not hold."""
    import torch

    from vlaad_ray.experiments.bench import openvla
    from vlaad_ray.teachers.openvla import DTYPES

    where = torch.device(device)
    policy, parameters = openvla.random_policy(size, where, DTYPES[dtype])  # type: ignore[arg-type]
    measured: dict[str, Any] = {}
    for batch in batches:
        try:
            measured[str(batch)] = openvla.measure(policy, batch, repeats, where)
        except torch.OutOfMemoryError:
            measured[str(batch)] = None
    return {"parameters": parameters, "batches": measured}


def training(**request: Any) -> dict[str, Any]:
    from vlaad_ray.experiments.bench.gpu import student_training

    return student_training.time_training(student_training.TrainingRequest(**request))


def rendering(**request: Any) -> dict[str, Any]:
    from vlaad_ray.experiments.bench.gpu import rendering as own

    return own.time_devices(own.RenderingRequest(**request))


def drawing(**request: Any) -> dict[str, Any]:
    """Of `rendering`, on the one device that this process's environment names."""
    from vlaad_ray.experiments.bench.gpu import rendering as own

    return own.time_drawing(own.RenderingRequest(**request))


def annotation(**request: Any) -> dict[str, Any]:
    from vlaad_ray.experiments.bench.gpu import annotation as own

    return own.time_answers(own.AnnotationRequest(**request))


def vlm(size: str, directory: str, device: str) -> dict[str, Any]:
    """A random VLM for `annotation`, in a process whose GPU memory is free again before an engine starts."""
    from vlaad_ray.experiments.bench.gpu import annotation as own

    return {"directory": str(own.random_vlm(size, Path(directory), device))}


KINDS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "machine": machine,
    "student": student,
    "teacher": teacher,
    "training": training,
    "rendering": rendering,
    "drawing": drawing,
    "annotation": annotation,
    "vlm": vlm,
}


def main(kind: str, request: str, file: str) -> None:
    with users_errors():
        answer = KINDS[kind](**json.loads(request))
    Path(file).write_text(json.dumps(answer, allow_nan=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
