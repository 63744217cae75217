"""An OpenVLA checkpoint directory, as Hugging Face stores it: read without remote code and without pickle.

config.json                     network; norm_stats: action statistics of the data sets trained on
dataset_statistics.json         the same statistics; where it exists (fine-tunes) it replaces norm_stats
preprocessor_config.json        means and standard deviations of the pixels
tokenizer.json                  Llama 2's tokenizer
model.safetensors.index.json    which file holds which tensor, and the files it names; or one model.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import LlamaConfig

from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla.model import OpenVlaConfig, OpenVlaModel
from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.models.openvla.vision import TOWERS

CONFIG, STATISTICS, PREPROCESSOR = "config.json", "dataset_statistics.json", "preprocessor_config.json"
TOKENIZER, INDEX, WEIGHTS = "tokenizer.json", "model.safetensors.index.json", "model.safetensors"
TOWER_OVERRIDES = "tower_overrides"
"""Key of config.json for towers of another size than timm's, one mapping for each: small test checkpoints only."""
SHOWN = 3
"""Tensor names that an error lists."""


@dataclass(frozen=True)
class OpenVlaCheckpoint:
    """Everything in the directory but the weights: cheap to read."""

    directory: Path
    config: OpenVlaConfig
    tokenizer: Tokenizer
    normalisation: Normalisation
    statistics: Mapping[str, Any]
    """Data set -> its record, see actions.parse_statistics."""
    statistics_source: Path
    """The file they are from."""


def read_checkpoint(directory: Path) -> OpenVlaCheckpoint:
    """Raises UserError naming the file at fault."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; pass the folder of an OpenVLA checkpoint (with its {CONFIG})")
    heads = sorted(path.name for path in directory.glob("action_head*"))
    if heads:
        raise UserError(
            f"{directory} holds {heads[0]}: an OpenVLA-OFT checkpoint, which decodes otherwise; "
            "use an OpenVLA one, or serve this one through its own server"
        )
    raw = read_json(directory / CONFIG)
    source = directory / (STATISTICS if (directory / STATISTICS).is_file() else CONFIG)
    statistics = read_json(source) if source.name == STATISTICS else raw.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise UserError(
            f"{directory} has no action statistics: neither {STATISTICS} nor norm_stats in {CONFIG}; "
            "copy the file from where the checkpoint was trained"
        )
    return OpenVlaCheckpoint(
        directory,
        parse_config(raw, directory / CONFIG),
        _read_tokenizer(directory / TOKENIZER),
        parse_normalisation(read_json(directory / PREPROCESSOR), str(directory / PREPROCESSOR)),
        statistics,
        source,
    )


def load_model(checkpoint: OpenVlaCheckpoint, device: torch.device, dtype: torch.dtype) -> OpenVlaModel:
    """The network with its weights on `device`. Raises UserError for files or tensors that are missing or don't fit.

    Every tensor goes from its file straight to `device` and becomes the parameter, so memory holds the weights once.
    """
    model = OpenVlaModel.on_meta(checkpoint.config)
    files = weight_files(checkpoint.directory)
    try:
        check_tensors(model, files, checkpoint.directory)
        tensors = {}
        for path in files:
            with safe_open(path, framework="pt", device=str(device)) as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping)
                    tensors[name] = shard.get_tensor(name).to(dtype)
    except SafetensorError as error:
        raise UserError(
            f"{checkpoint.directory}: a weight file is corrupt ({error}); copy the checkpoint again"
        ) from None
    model.load_state_dict(tensors, assign=True)
    return model.ready(device)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of them there."""
    if (directory / INDEX).is_file():
        index = read_json(directory / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise UserError(f"{directory / INDEX} has no weight_map; copy the checkpoint again")
        names = sorted(set(index.values()))
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise UserError(
                f"{directory}: {len(absent)} of {len(names)} weight files are missing, {_first(absent)}; copy them too"
            )
        return [directory / name for name in names]
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / "adapter_model.safetensors").is_file():
        raise UserError(f"{directory} holds a LoRA adapter only; merge it into its base model and pass the result")
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise UserError(
            f"{directory} holds pickled weights ({pickled[0]}), which can run code when loaded and are not read; "
            "save the model as safetensors (save_pretrained does by default)"
        )
    raise UserError(f"{directory} has neither {INDEX} nor {WEIGHTS}; copy the whole checkpoint")


def check_tensors(model: OpenVlaModel, files: Iterable[Path], directory: Path) -> None:
    """Names and shapes in the files against the module tree, before anything large is read."""
    stored: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as shard:
            stored |= {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in stored]
    surplus = [name for name in stored if name not in expected]
    odd = [
        f"{name} {list(stored[name])} instead of {list(expected[name])}"
        for name in expected.keys() & stored.keys()
        if stored[name] != expected[name]
    ]
    faults = [
        f"{len(names)} {kind}, {_first(names)}"
        for kind, names in (("missing", missing), ("unexpected", surplus), ("of another shape", sorted(odd)))
        if names
    ]
    if faults:
        raise UserError(
            f"{directory}: the weights don't fit {CONFIG} ({len(expected)} tensors): {'; '.join(faults)}; "
            "copy the checkpoint again, or pass an OpenVLA one"
        )


def parse_config(raw: Mapping[str, Any], path: Path) -> OpenVlaConfig:
    """config.json of the fused DINOv2 + SigLIP, Llama 2 family: OpenVLA-7B and its fine-tunes."""
    text, timm_ids = raw.get("text_config"), raw.get("timm_model_ids")
    if raw.get("model_type") != "openvla" or not isinstance(text, dict):
        raise UserError(
            f"{path}: model_type is {raw.get('model_type')!r}, not 'openvla'; pass an OpenVLA checkpoint "
            "in Hugging Face's form"
        )
    if text.get("model_type") != "llama" or timm_ids != list(TOWERS):
        raise UserError(
            f"{path}: {text.get('model_type')!r} with vision towers {timm_ids} is not supported; "
            f"OpenVLA-7B is 'llama' with {list(TOWERS)}"
        )
    sizes = raw.get("image_sizes", [])
    if len(set(sizes)) != 1:
        raise UserError(f"{path}: image_sizes {sizes} is not supported; both towers must see one size")
    overrides: list[dict[str, Any]] = raw.get(TOWER_OVERRIDES, [{}, {}])
    dinov2, siglip = (replace(tower, **own) for tower, own in zip(TOWERS.values(), overrides, strict=True))
    return OpenVlaConfig(
        towers=(dinov2, siglip),
        image_size=sizes[0],
        language=LlamaConfig.from_dict(text),
        pad_to_multiple_of=raw.get("pad_to_multiple_of", 64),
        action_bins=raw.get("n_action_bins", 256),
    )


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole checkpoint directory")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; copy the checkpoint again")
    return content


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(
            f"{path} is missing; copy it too (where there is only tokenizer.model: AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...) writes it)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path} is not a tokenizer ({error}); copy the checkpoint again") from None


def parse_normalisation(raw: Mapping[str, Any], source: str) -> Normalisation:
    """preprocessor_config.json's pixel statistics."""
    means, stds = raw.get("means"), raw.get("stds")
    if not all(isinstance(rows, list) and [len(row) for row in rows] == [3, 3] for rows in (means, stds)):
        raise UserError(f"{source}: 'means' and 'stds' must hold three numbers for each of two towers; copy it again")
    assert means is not None and stds is not None
    return Normalisation((tuple(means[0]), tuple(means[1])), (tuple(stds[0]), tuple(stds[1])))


def _first(names: list[str]) -> str:
    return f"first {', '.join(names[:SHOWN])}" if len(names) > SHOWN else ", ".join(names)
