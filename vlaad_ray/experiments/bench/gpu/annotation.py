"""Answers a second of a random VLM through vLLM, alone and through Ray Data: `bench annotate` on made-up material."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaad_ray.annotate import random_checkpoint
from vlaad_ray.configs import BenchAnnotateConfig, UserError, VlmConfig
from vlaad_ray.experiments.bench import annotate
from vlaad_ray.experiments.bench.gpu import alone, motion
from vlaad_ray.files import replacing_directory

SIZES = {"full": random_checkpoint.QWEN_3B, "tiny": random_checkpoint.Size(vocabulary=2048, tied=True)}
"""tiny: more rows in the embedding than tokens, as full has."""


@dataclass(frozen=True)
class AnnotationRequest:
    size: str
    device: str
    folder: str
    """For the synthetic episodes and the checkpoint, which stay, and for the benchmark's own output."""
    data: str | None
    """Dataset; None: synthetic episodes."""
    episodes: int
    """Synthetic ones."""
    questions: int
    batch_size: int
    limit_s: float
    """For making the checkpoint."""
    log: str
    """File for what making it prints."""


def time_answers(request: AnnotationRequest) -> dict[str, Any]:
    """What `bench annotate` says, one measurement of each. Raises UserError where the checkpoint cannot be made."""
    folder = Path(request.folder)
    model = folder / f"vlm-{request.size}"
    if not model.is_dir():
        wanted = {"size": request.size, "directory": str(model), "device": request.device}
        done = alone.measure("vlm", wanted, Path(request.log), request.limit_s, inner=True)
        if done.problem:
            raise UserError(f"the random VLM could not be made: {done.problem}")
    data = Path(request.data) if request.data else motion.write_dataset(folder / "episodes", request.episodes)
    vlm = VlmConfig(
        model=str(model),
        preset="gpu-24gb" if request.device == "cuda" else "cpu",
        batch_size=request.batch_size,
        max_model_len=4096 if request.size == "full" else 2048,
    )
    config = BenchAnnotateConfig(data, folder / "annotate", request.questions, repeats=1, vlm=vlm)
    summary = annotate.bench_annotate(config)
    kept = ("model", "measured_questions", "answers_per_second", "ratio_to_vllm")
    return {name: summary[name] for name in kept}


def random_vlm(size: str, directory: Path, device: str) -> Path:
    """A checkpoint with random weights; returns its directory."""
    with replacing_directory(directory, "config.json") as place:
        random_checkpoint.write_checkpoint(place, SIZES[size], device=device)
    return directory
