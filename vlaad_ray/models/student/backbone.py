"""CLIP's weights for a student, from a directory or a name on the hub in transformers' format.

A CLIP with 77 text positions gets them stretched to 248 as Long-CLIP does; a Long-CLIP is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from vlaad_ray.configs import Location, UserError, location
from vlaad_ray.files import local_copy, read_json, replacing_directory, sha256
from vlaad_ray.models.student.checkpoint import load_tensors, save_tensors
from vlaad_ray.models.student.clip import ClipConfig, ClipStudent, text_config, vision_config
from vlaad_ray.models.student.text import CLIP_MARKS, TextTokenizer, load_tokenizer, train_tokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CLIP_POSITIONS, KEPT_POSITIONS, STRETCH = 77, 20, 4
POSITIONS = "text.embeddings.position_embedding.weight"
TOWERS = {"vision_model.": "vision.", "text_model.": "text."}
"""Their names in a CLIP checkpoint and in a student."""


@contextmanager
def located(backbone: str, without: str = "") -> Iterator[Path]:
    """The directory itself, a copy of one in a store, or where the hub's files lie once fetched.

    `without`: the ending of files that need not be copied.
    """
    place = location(backbone)
    if isinstance(place, Path) and not place.is_dir():
        yield _fetched(backbone)
        return
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (place / name).is_file():
            raise UserError(
                f"--backbone {backbone} has no {name}; save CLIPModel and CLIPTokenizerFast there with transformers' "
                "save_pretrained"
            )
    with local_copy(place, without) as directory:
        yield directory


def fingerprint(backbone: str) -> str:
    """16 hex digits over the weights."""
    place = location(backbone)
    if isinstance(place, Path) and not place.is_dir():
        place = _fetched(backbone)
    return sha256(place / WEIGHTS)[:16]


def read(backbone: str) -> tuple[ClipConfig, TextTokenizer]:
    """A student's config with the checkpoint's towers, and CLIP's own tokenizer. UserError for what is not a CLIP."""
    with located(backbone, without=".safetensors") as directory:
        tokenizer = load_tokenizer(directory / TOKENIZER, ClipConfig.text_length)
        if tokenizer.end is None:
            raise UserError(f"{directory / TOKENIZER} is not CLIP's: it has no <|endoftext|>")
        return _config(directory, tokenizer.vocabulary, tokenizer.end), tokenizer


def load(student: ClipStudent, directory: Path) -> None:
    """Put a checkpoint's towers into a student without adapters. Raises UserError naming a tensor that doesn't fit."""
    path = directory / WEIGHTS
    towers = {
        new + name.removeprefix(old): tensor.to(torch.float32)
        for name, tensor in load_tensors(path).items()
        for old, new in TOWERS.items()
        if name.startswith(old) and not name.endswith("position_ids")  # older versions stored these counters
    }
    if POSITIONS in towers and len(towers[POSITIONS]) == CLIP_POSITIONS:
        towers[POSITIONS] = stretch_positions(towers[POSITIONS])
    own = student.state_dict()
    expected = {name: own[name].shape for name in own if name.startswith(tuple(TOWERS.values()))}
    wrong = sorted(name for name in expected.keys() | towers.keys() if _shape(towers, name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: {len(wrong)} tensors missing, extra or of another shape than its {CONFIG} says, first {name!r} "
            f"({_words(_shape(towers, name))}, expected {_words(expected.get(name))})"
        )
    student.load_state_dict(towers, strict=False)


def stretch_positions(positions: Tensor) -> Tensor:
    """[77, D] -> [248, D]: the first 20 as they are, the rest four times as dense, the last step continued.

    Long-CLIP, arXiv 2403.15378, section 3.2: the positions that short captions have trained well are kept.
    """
    kept, spread = positions[:KEPT_POSITIONS], positions[KEPT_POSITIONS:]
    steps = torch.cat([spread.diff(dim=0), spread[-1:] - spread[-2:-1]])
    fractions = torch.arange(STRETCH, dtype=positions.dtype)[None, :, None] / STRETCH
    return torch.cat([kept, (spread[:, None] + fractions * steps[:, None]).flatten(0, 1)])


def write_random(directory: Location, texts: Iterable[str], config: ClipConfig, seed: int) -> None:
    """A CLIP of this shape with random weights, in the same format; its tokenizer is trained on `texts`."""
    tokenizer = train_tokenizer(texts, config.text_length, CLIP_MARKS)
    assert tokenizer.end is not None
    config = replace(config, end_token=tokenizer.end)
    towers = CLIPConfig(text_config=text_config(config).to_dict(), vision_config=vision_config(config).to_dict())
    torch.manual_seed(seed)
    with replacing_directory(directory, CONFIG) as temporary:
        towers.save_pretrained(temporary)
        save_tensors(temporary / WEIGHTS, CLIPModel(towers).state_dict())
        tokenizer.save(temporary / TOKENIZER)


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--backbone {name}: neither a directory nor a model that the hub has for us "
            f"({str(error).strip().splitlines()[0]})"
        ) from None


def _config(directory: Path, vocabulary: int, end: int) -> ClipConfig:
    path = directory / CONFIG
    content = read_json(path, broken="copy the checkpoint again")
    if not isinstance(content, dict) or content.get("model_type") != "clip":
        raise UserError(f"{path} does not describe a CLIP ('model_type' is not 'clip'); pass a CLIP as --backbone")
    described = CLIPConfig.from_dict(content)
    vision, text = described.vision_config, described.text_config
    for name in ("hidden_act", "layer_norm_eps"):
        if getattr(vision, name) != getattr(text, name):
            raise UserError(f"{path}: the towers differ in {name}; a student's have it in common")
    if vocabulary > text.vocab_size:
        raise UserError(
            f"{directory / TOKENIZER} has {vocabulary} tokens, {path} only {text.vocab_size}; "
            "copy both from the same checkpoint"
        )
    return ClipConfig(
        image_size=vision.image_size,
        vocabulary=text.vocab_size,
        text_width=text.hidden_size,
        end_token=end,
        patch_size=vision.patch_size,
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_mlp=vision.intermediate_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        text_mlp=text.intermediate_size,
        activation=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
    )


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _words(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))
