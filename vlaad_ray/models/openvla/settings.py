"""What the JSON files of an OpenVLA checkpoint say. Settings that the network here has no room for are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from vlaad_ray import files
from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla.model import OpenVlaConfig
from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.models.openvla.vision import TOWERS

TOWER_OVERRIDES = "tower_overrides"
"""Key of config.json for towers of another size than timm's, one mapping for each: small test checkpoints only."""
ONLY: dict[str, Any] = {
    "use_fused_vision_backbone": True,
    "timm_override_act_layers": [None, None],
    "quantization_config": None,
}
"""Key of config.json -> the one value that the network here computes with, also where the key is absent or null."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file. Raises UserError naming the file."""
    content = files.read_json(path, "copy the whole checkpoint directory", "copy the checkpoint again")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; copy the checkpoint again")
    return content


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
    for key, only in ONLY.items():
        if raw.get(key) not in (None, only):
            raise UserError(
                f"{path}: {key} {json.dumps(raw[key])} is not supported, only {json.dumps(only)}; "
                "pass OpenVLA-7B or a fine-tune of it"
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


def parse_normalisation(raw: Mapping[str, Any], source: str) -> Normalisation:
    """preprocessor_config.json's pixel statistics: those that the authors' processor ends up with.

    Theirs makes tvf_normalize_params of means and stds, and then puts the stored ones, where there are any, in their
    place. Those were rounded to bf16 when the checkpoint was converted; means and stds were not.
    """
    what = "'means' and 'stds'"
    means: Any = raw.get("means")
    stds: Any = raw.get("stds")
    if "tvf_normalize_params" in raw:
        what, rows = "'tvf_normalize_params'", raw["tvf_normalize_params"]
        towers = rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []
        means, stds = [tower.get("mean") for tower in towers], [tower.get("std") for tower in towers]
    if not (_two_threes(means) and _two_threes(stds)) or any(std <= 0 for row in stds for std in row):
        raise UserError(
            f"{source}: {what} must hold three numbers for each of two towers, deviations above 0; copy it again"
        )
    return Normalisation((tuple(means[0]), tuple(means[1])), (tuple(stds[0]), tuple(stds[1])))


def _two_threes(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and len(rows) == 2
        and all(isinstance(row, list) and len(row) == 3 for row in rows)
        and all(isinstance(number, int | float) and math.isfinite(number) for row in rows for number in row)
    )


def check_sizes(raw: Mapping[str, Any], size: int, source: str) -> None:
    """Refuse sizes in preprocessor_config.json other than the network's.

    The authors' processor would resize or crop to them. Images come to it square and in the network's size here, which
    its strategies and interpolations then leave alone.
    """
    square = [size, size]
    for key, inner, allowed in (
        ("input_sizes", None, ([3, *square],)),
        ("tvf_resize_params", "size", (square, size)),
        ("tvf_crop_params", "output_size", (square, size)),
    ):
        rows = raw.get(key)
        if rows is None:
            continue
        found = [row.get(inner) if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else rows
        if not isinstance(found, list) or len(found) != 2 or any(each not in allowed for each in found):
            raise UserError(
                f"{source}: {key} {json.dumps(found)} does not go with config.json's image_sizes {json.dumps(square)}; "
                "copy both files from one checkpoint"
            )
