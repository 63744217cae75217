"""A student on disk: model.safetensors, config.json, tokenizer.json. No pickle.

Loading one needs torch, and what its architecture imports (clip: transformers); no adapters are left in any.
Proprioception's normalisation statistics are buffers of the model, so they are in model.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlaad_ray import plugins
from vlaad_ray.configs import Location, UserError, read_record, what_a_checkpoint_is
from vlaad_ray.files import local_copy, read_json, sha256
from vlaad_ray.models.student import STUDENTS
from vlaad_ray.models.student.model import Student
from vlaad_ray.models.student.presets import Preset
from vlaad_ray.models.student.text import TextTokenizer, load_tokenizer

FORMAT = "vlaad_ray student"
SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
"""Version 1 knew one architecture, small, and didn't name it. Version 2 knew one robot, LIBERO's."""
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint directory holds."""

    student: Student
    tokenizer: TextTokenizer
    training: dict[str, Any]
    """Where the weights come from: objective, data, annotations, render mode, init states trained on."""


def save_pretrained(directory: Path, student: Student, tokenizer: TextTokenizer, training: Mapping[str, Any]) -> None:
    """Write the three files into `directory` (made if missing). `training` must be JSON-able.

    config.json goes last and holds the others' hashes, so that no reader takes the halves of two checkpoints for one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(directory / WEIGHTS, student.state_dict())
    tokenizer.save(directory / TOKENIZER)
    config = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "architecture": student.config.architecture,
        "student": asdict(student.config),
        "training": dict(training),
        "files": {name: sha256(directory / name) for name in (WEIGHTS, TOKENIZER)},
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")


def from_pretrained(directory: Location) -> Pretrained:
    """Load a checkpoint directory onto the CPU, in fp32. Raises UserError naming the file at fault."""
    read_config(directory)  # before all of it is fetched from a store
    with local_copy(directory) as folder:
        return _load(folder)


def _load(directory: Path) -> Pretrained:
    config = read_config(directory)
    config_type, network_type = of_architecture(config["architecture"], directory / CONFIG).network()
    student_config = read_record(
        config_type, config.get("student"), f"{directory / CONFIG}: 'student'", "copy the checkpoint again"
    )
    if unknown := config["student"].keys() - {field.name for field in fields(config_type)}:
        raise UserError(
            f"{directory / CONFIG}: 'student' has {', '.join(sorted(unknown))}, of which this vlaad_ray knows nothing; "
            "install the version that wrote it"
        )
    student = network_type.unfilled(student_config)
    tensors = load_tensors(directory / WEIGHTS)
    expected = {name: tensor.shape for name, tensor in student.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | tensors.keys() if _shape(tensors, name) != expected.get(name))
    if wrong:
        raise UserError(
            f"{directory / WEIGHTS} doesn't match its {CONFIG}: {len(wrong)} tensors missing, extra or of another "
            f"shape, first {wrong[0]!r}; copy the whole checkpoint again"
        )
    tokenizer = load_tokenizer(directory / TOKENIZER, student_config.text_length)
    for name, written in config.get("files", {}).items():
        if sha256(directory / name) != written:
            raise UserError(f"{directory / name} is not the file that {CONFIG} was written with; copy both again")
    student.fill(tensors)
    student.eval()
    return Pretrained(student, tokenizer, config["training"])


def of_architecture(name: str, source: object) -> Preset:
    """The first preset of an architecture, a plugin's if need be. Raises UserError, naming the `source`, for none."""
    if name not in {preset.architecture for preset in STUDENTS.values()}:
        plugins.load_named()
    known = {preset.architecture: preset for preset in reversed(STUDENTS.values())}
    if name not in known:
        raise UserError(
            f"{source} names the architecture {name!r}, this vlaad_ray knows {', '.join(sorted(known))}; name the "
            "module that adds it (--plugin MODULE), or install the version that wrote it"
        )
    return known[name]


def checkpoint_name(directory: Location) -> str:
    """What identifies a checkpoint, from its weights alone: student-1a2b3c4d."""
    known = read_config(directory).get("files", {})
    return f"student-{(known.get(WEIGHTS) or sha256(directory / WEIGHTS))[:8]}"


def read_config(directory: Location) -> dict[str, Any]:
    """config.json of a checkpoint, checked for format and version. Cheap: reads no weights."""
    path = directory / CONFIG
    config = read_json(
        path,
        f"pass a student checkpoint, as jobs/train.py writes it to OUT/checkpoint: {what_a_checkpoint_is(directory)}",
        "copy the checkpoint again",
    )
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} is not a {FORMAT} checkpoint; pass the directory that jobs/train.py wrote")
    if config["schema_version"] not in READABLE:
        raise UserError(
            f"{path} has schema version {config['schema_version']}, this vlaad_ray reads {SCHEMA_VERSION}; "
            "train again or install the version that wrote it"
        )
    config.setdefault("architecture", "small")
    of_architecture(config["architecture"], path)
    return config


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError for a tensor with a number that is none, and where nothing can be written."""
    check_finite(path, tensors)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {str(error).splitlines()[0]}; make room, then rerun the same command"
        ) from None


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError naming a tensor of the file at `path` that holds NaN or infinity. 0.05 s for vlaad_158m."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Least and greatest are NaN where any is, and take a sixth of the time that isfinite takes.
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise UserError(f"{path}: {name} holds NaN or infinity, weights that are broken; train again, see --lr")


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises UserError for a file that is missing, corrupt, or holds a number that is none."""
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole checkpoint directory")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is corrupt ({str(error).splitlines()[0]}); copy or train the checkpoint again"
        ) from None
    check_finite(path, tensors)
    return tensors


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
