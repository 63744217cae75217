"""An OpenVLA checkpoint directory, as Hugging Face stores it: read without remote code and without pickle.

config.json                     network; norm_stats: action statistics of the data sets trained on
dataset_statistics.json         the same statistics; where it exists (fine-tunes) it replaces norm_stats
preprocessor_config.json        means and standard deviations of the pixels, sizes of the images
tokenizer.json                  Llama 2's tokenizer
model.safetensors.index.json    which file holds which tensor, and the files it names; or one model.safetensors

routing.json                    only of a routed one: which layers run (routing)
router.safetensors              its router's weights, where no fixed route is named

Other weights beside these are refused: a policy that does without them would act, but otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla.model import OpenVlaConfig, OpenVlaModel
from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.models.openvla.routing import Routing, read_routing
from vlaad_ray.models.openvla.settings import check_sizes, parse_config, parse_normalisation, read_object
from vlaad_ray.models.tokenizer import read_tokenizer

CONFIG, STATISTICS, PREPROCESSOR = "config.json", "dataset_statistics.json", "preprocessor_config.json"
TOKENIZER, INDEX, WEIGHTS = "tokenizer.json", "model.safetensors.index.json", "model.safetensors"
MAKE_TOKENIZER = "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
SHOWN = 3
"""Names that an error lists."""
OFT_NAMES = ("action_head", "lora_adapter", "noisy_action_projector", "proprio_projector", "vision_backbone")
"""How the names begin of what OpenVLA-OFT's finetune.py stores beside the model."""
ADAPTER = "adapter_config.json"
"""peft's: what makes a directory an adapter."""
WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
NOT_THE_POLICYS = (
    "model*.safetensors",
    "pytorch_model*.bin",
    "training_args.bin",
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*.pth",
)
"""Weights that may lie there unread: the model's in another form, and what a trainer needs to go on."""
DERIVED = re.compile(r"language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors that older versions of transformers stored though they follow from config.json."""


@dataclass(frozen=True)
class OpenVlaCheckpoint:
    """Everything in the directory but what is in the weight files: cheap to read."""

    directory: Path
    config: OpenVlaConfig
    tokenizer: Tokenizer
    normalisation: Normalisation
    statistics: Mapping[str, Any]
    """Data set -> its record, see actions.parse_statistics."""
    statistics_source: Path
    """The file they are from."""
    weights: list[Path]
    routing: Routing | None = None
    """Which decoder layers run; None: all."""


def read_checkpoint(directory: Path) -> OpenVlaCheckpoint:
    """Raises UserError naming the file at fault."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; pass the folder of an OpenVLA checkpoint (with its {CONFIG})")
    of_oft = sorted(path.name for path in directory.iterdir() if path.name.startswith(OFT_NAMES))
    if of_oft:
        raise UserError(
            f"{directory} holds {_first(of_oft)}: an OpenVLA-OFT checkpoint, which decodes otherwise; "
            "use an OpenVLA one, or serve this one through its own server"
        )
    raw = read_object(directory / CONFIG)
    source = directory / (STATISTICS if (directory / STATISTICS).is_file() else CONFIG)
    statistics = read_object(source) if source.name == STATISTICS else raw.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise UserError(
            f"{directory} has no action statistics: neither {STATISTICS} nor norm_stats in {CONFIG}; "
            "copy the file from where the checkpoint was trained"
        )
    config, preprocessor = parse_config(raw, directory / CONFIG), read_object(directory / PREPROCESSOR)
    check_sizes(preprocessor, config.image_size, str(directory / PREPROCESSOR))
    weights = weight_files(directory)
    routing = read_routing(directory, config.language.num_hidden_layers)
    check_all_is_read(directory, [*weights, *([routing.weights] if routing and routing.weights else [])])
    return OpenVlaCheckpoint(
        directory,
        config,
        read_tokenizer(
            directory / TOKENIZER, f"copy it too (where there is only tokenizer.model: {MAKE_TOKENIZER} writes it)"
        ),
        parse_normalisation(preprocessor, str(directory / PREPROCESSOR)),
        statistics,
        source,
        weights,
        routing,
    )


def load_model(checkpoint: OpenVlaCheckpoint, device: torch.device, dtype: torch.dtype) -> OpenVlaModel:
    """The network with its weights on `device`. Raises UserError for files or tensors that are missing or don't fit.

    Every tensor goes from its file straight to `device` and becomes the parameter, so memory holds the weights once.
    """
    model = OpenVlaModel.on_meta(checkpoint.config)
    try:
        check_tensors(model, checkpoint.weights, checkpoint.directory)
        tensors = {}
        for path in checkpoint.weights:
            with safe_open(path, framework="pt", device=str(device)) as shard:
                for name in _tensor_names(shard):
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
        index = read_object(directory / INDEX).get("weight_map")
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


def check_all_is_read(directory: Path, read: Sequence[Path]) -> None:
    """Refuse weights in the directory that are not among those `read`, say a head or an adapter."""
    unread = [
        path.name
        for path in sorted(directory.iterdir())
        if path.name == ADAPTER
        or (path / ADAPTER).is_file()
        or (
            path.suffix in WEIGHT_SUFFIXES
            and path not in read
            and not any(fnmatch(path.name, pattern) for pattern in NOT_THE_POLICYS)
        )
    ]
    if unread:
        raise UserError(
            f"{directory} holds {_first(unread)}, which OpenVLA has no place for: merge an adapter into the model and "
            "pass the result, serve a policy with other parts through its own server, or move away what is not needed"
        )


def check_tensors(model: OpenVlaModel, files: Sequence[Path], directory: Path) -> None:
    """Names and shapes in the files against the module tree, before anything large is read."""
    stored: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as shard:
            stored |= {name: tuple(shard.get_slice(name).get_shape()) for name in _tensor_names(shard)}
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


def _tensor_names(shard: safe_open) -> list[str]:
    return [name for name in shard.keys() if not DERIVED.fullmatch(name)]  # noqa: SIM118 (not a mapping)


def _first(names: list[str]) -> str:
    return f"first {', '.join(names[:SHOWN])}" if len(names) > SHOWN else ", ".join(names)
