"""Checkpoints with random weights in OpenVLA's true layout: what tests load, and what speed is measured with."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor

from vlaad_ray.models.openvla.checkpoint import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    STATISTICS,
    TOKENIZER,
)
from vlaad_ray.models.openvla.model import OpenVlaModel
from vlaad_ray.models.openvla.preprocess import EMPTY_TOKEN
from vlaad_ray.models.openvla.settings import TOWER_OVERRIDES, parse_config
from vlaad_ray.models.openvla.vision import TOWERS

Size = Literal["tiny", "full"]
PAD_TOKEN = 32000
ACTION_PREFERENCE = 8
"""Makes the greedy choice an action token nearly always, as trained weights do; else all actions would be extremes."""
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")

TINY: dict[str, Any] = {
    TOWER_OVERRIDES: [
        {"width": 64, "depth": 2, "heads": 2, "mlp_width": 128},
        {"width": 48, "depth": 2, "heads": 2, "mlp_width": 96},
    ],
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


def config_json(size: Size) -> dict[str, Any]:
    """config.json as published; tiny: with narrow, shallow networks, but the full vocabulary and image size."""
    tiny = TINY if size == "tiny" else {}
    text = {"model_type": "llama", "pad_token_id": PAD_TOKEN, "vocab_size": 32064, "torch_dtype": "bfloat16"}
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "use_fused_vision_backbone": True,
        "timm_model_ids": list(TOWERS),
        "timm_override_act_layers": [None, None],
        "image_sizes": [224, 224],
        "image_resize_strategy": "resize-naive",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "output_projector_states": False,
        "pad_token_id": PAD_TOKEN,
        "pad_to_multiple_of": 64,
        "torch_dtype": "bfloat16",
        **tiny,
        "text_config": {**text, **tiny.get("text_config", {})},
    }


PREPROCESSOR_JSON: dict[str, Any] = {
    "image_processor_type": "PrismaticImageProcessor",
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 224, 224], [3, 224, 224]],
    "interpolations": ["bicubic", "bicubic"],
    "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    "processor_class": "PrismaticProcessor",
    "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    "tvf_crop_params": [{"output_size": [224, 224]}, {"output_size": [224, 224]}],
    "tvf_do_letterbox": False,
    "tvf_letterbox_fill": None,
    "tvf_normalize_params": [
        {
            "inplace": False,
            "mean": [0.484375, 0.455078125, 0.40625],
            "std": [0.228515625, 0.2236328125, 0.224609375],
        },
        {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    ],
    "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [224, 224]}] * 2,
    "use_fused_vision_backbone": True,
}
"""As the authors' conversion script writes it. That sets torch's default dtype to bf16: ImageNet's `means` and `stds`
come out as they are, `tvf_normalize_params`, which went through tensors, rounded.
"""


def statistics_json() -> dict[str, Any]:
    """Action statistics of the magnitude that LIBERO's demonstrations have, a little apart from suite to suite."""
    entries = {}
    for number, suite in enumerate(SUITES):
        reach = [0.75, 0.72, 0.84, 0.09, 0.15, 0.13]
        high = [round(value * (1 + 0.05 * number), 4) for value in reach] + [1.0]
        entries[f"{suite}_no_noops"] = {
            "action": {
                "q01": [-value for value in high[:-1]] + [0.0],
                "q99": high,
                "mask": [True] * 6 + [False],
            },
            "num_transitions": 50_000,
            "num_trajectories": 430,
        }
    return entries


def make_tokenizer() -> Tokenizer:
    """A tokenizer of single characters built like Llama 2's: its begin, end and empty tokens, byte fallback."""
    characters = string.ascii_letters + string.digits + string.punctuation
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {character: 259 + number for number, character in enumerate(characters)}
    vocabulary["▁"] = EMPTY_TOKEN
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A weight that keeps signals of unit size: scaled by fan-in; norms and layer scales are one, biases small."""
    device = generator.device
    if len(shape) == 1:
        if name.endswith("bias"):
            return 0.02 * torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return torch.ones(shape, device=device, dtype=dtype)
    # An embedding's row is a signal, not a sum over its inputs.
    fan_in = 1 if "embed_tokens" in name or "pos_embed" in name else math.prod(shape[1:])
    return torch.randn(shape, generator=generator, device=device, dtype=dtype) / math.sqrt(fan_in)


def random_model(
    size: Size, device: torch.device, dtype: torch.dtype, seed: int = 0, layers: int | None = None
) -> OpenVlaModel:
    """The network with random weights, made where they will be used. `layers`: of the language model; None: all."""
    raw = config_json(size)
    if layers is not None:
        raw["text_config"]["num_hidden_layers"] = layers
    model = OpenVlaModel.on_meta(parse_config(raw, Path(CONFIG)))
    model.load_state_dict(dict(_random_state(model, device, dtype, seed)), assign=True)
    return model.ready(device)


def write_random_checkpoint(
    directory: Path, size: Size, dtype: torch.dtype = torch.bfloat16, seed: int = 0, shard_bytes: int = 5_000_000_000
) -> None:
    """Write a checkpoint in shards of at most about `shard_bytes`, one of which memory holds at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    model = OpenVlaModel.on_meta(parse_config(config_json(size), Path(CONFIG)))
    shards: list[list[str]] = [[]]
    held: dict[str, Tensor] = {}
    for name, tensor in _random_state(model, torch.device("cpu"), dtype, seed):
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > shard_bytes:
            save_file(held, directory / _shard(len(shards)))
            held = {}
            shards.append([])
        held[name] = tensor
        shards[-1].append(name)
    save_file(held, directory / _shard(len(shards)))
    weight_map = {name: _shard(number) for number, names in enumerate(shards, 1) for name in names}
    for name, content in (
        (INDEX, {"metadata": {}, "weight_map": weight_map}),
        (CONFIG, config_json(size)),
        (PREPROCESSOR, PREPROCESSOR_JSON),
        (STATISTICS, statistics_json()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    make_tokenizer().save(str(directory / TOKENIZER))


def _random_state(
    model: OpenVlaModel, device: torch.device, dtype: torch.dtype, seed: int
) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(device).manual_seed(seed)
    config = model.config
    action_tokens = slice(config.action_vocabulary_end - config.action_bins, config.action_vocabulary_end)
    for name, shape in [(name, tensor.shape) for name, tensor in model.state_dict().items()]:
        tensor = random_tensor(name, shape, generator, dtype)
        if name == "language_model.lm_head.weight":
            tensor[action_tokens] *= ACTION_PREFERENCE
        yield name, tensor


def _shard(number: int) -> str:
    return f"model-{number:05d}.safetensors"
