"""The files of an OpenVLA checkpoint: what is taken of them, and what is refused because it would change the policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla.checkpoint import read_checkpoint
from vlaad_ray.models.openvla.preprocess import Normalisation
from vlaad_ray.teachers.openvla import OpenVla, load_openvla
from vlaad_ray.types import Observation


@pytest.fixture
def broken(openvla_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(openvla_checkpoint, tmp_path / "broken"))


def load(
    directory: Path, suite: str = "libero_goal", key: str | None = None, dtype: Literal["bf16", "fp32"] = "fp32"
) -> OpenVla:
    return load_openvla(directory, suite, key, "cpu", dtype)


def drop(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def rewrite(name: str, **changes: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a checkpoint as one model.safetensors, changed."""
    tensors: dict[str, torch.Tensor] = {}
    for path in directory.glob("model-*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (directory / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def actions(directory: Path) -> np.ndarray:
    """[1, 7]: what the checkpoint does about one random image."""
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return load(directory).infer(Observation("push the plate", np.zeros(8, np.float32), {"agentview": image})).actions


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_pixels_are_normalised_with_the_numbers_that_the_checkpoints_processor_stored(openvla_checkpoint: Path) -> None:
    """Not with those that it was made of: they differ by bf16's rounding, and so do the tokens."""
    assert read_checkpoint(openvla_checkpoint).normalisation == Normalisation(
        ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5)), ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))
    )


def test_the_suites_own_statistics_are_used(openvla_checkpoint: Path) -> None:
    """An action un-normalised with another suite's statistics would be scaled wrongly, quietly."""
    stored = json.loads((openvla_checkpoint / "dataset_statistics.json").read_text())
    for suite in ("libero_goal", "libero_10"):
        own = load(openvla_checkpoint, suite)._statistics
        assert own.q99.tolist() == stored[f"{suite}_no_noops"]["action"]["q99"]
    other = load(openvla_checkpoint, "libero_goal", "libero_10_no_noops")._statistics
    assert other.q99.tolist() == stored["libero_10_no_noops"]["action"]["q99"]


def test_dataset_statistics_replace_those_in_the_config(broken: Path) -> None:
    """A fine-tune's config.json may still hold its base model's; without the file they are what counts."""
    config = json.loads((broken / "config.json").read_text())
    config["norm_stats"] = {"bridge_orig": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    (broken / "config.json").write_text(json.dumps(config))
    assert load(broken)._statistics.q99[0] != 1
    (broken / "dataset_statistics.json").unlink()
    statistics = load(broken, key="bridge_orig")._statistics
    assert statistics.q99.tolist() == [1.0] * 7
    assert statistics.mask.all()  # where none is given, every dimension was normalised


def test_loaded_weights_are_the_stored_ones(openvla_checkpoint: Path) -> None:
    """In the asked dtype, none left on the meta device, rotary frequencies in fp32 whatever the dtype."""
    stored = {}
    for path in openvla_checkpoint.glob("*.safetensors"):
        stored |= load_file(path)
    model = load(openvla_checkpoint, dtype="bf16")._model
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].bfloat16(), atol=0, rtol=0)
    frequencies = model.language_model.model.rotary_emb.inv_freq
    np.testing.assert_allclose(frequencies, 10_000 ** -(np.arange(16) / 16), rtol=1e-6)


def test_a_single_weight_file_will_do(broken: Path, openvla_checkpoint: Path) -> None:
    edit_weights(broken, lambda tensors: None)
    np.testing.assert_array_equal(actions(broken), actions(openvla_checkpoint))


def test_stored_rotary_frequencies_are_neither_refused_nor_used(broken: Path, openvla_checkpoint: Path) -> None:
    """Older conversions hold them, for each layer or once; config.json says all about them."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for owner in ("", "layers.0.self_attn.", "layers.1.self_attn."):
            tensors[f"language_model.model.{owner}rotary_emb.inv_freq"] = torch.zeros(16)

    edit_weights(broken, change)
    np.testing.assert_array_equal(actions(broken), actions(openvla_checkpoint))


def test_statistics_whose_mask_is_null_normalised_every_dimension(broken: Path) -> None:
    record = {"action": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": None}}
    rewrite("dataset_statistics.json", libero_goal=record)(broken)
    assert load(broken)._statistics.mask.tolist() == [True] * 7


# --- what is refused -------------------------------------------------------------------------------------------------


def pickled_only(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    (directory / "pytorch_model-00001-of-00003.bin").write_bytes(b"")


def wrong_tensors(directory: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["projector.fc3.bias"]
        tensors["projector.fc4.bias"] = torch.zeros(1)
        tensors["projector.fc1.bias"] = torch.zeros(3)

    edit_weights(directory, change)


def cut_short(directory: Path) -> None:
    path = directory / "model-00002.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (wrong_tensors, "1 missing, projector.fc3.bias"),
        (wrong_tensors, "1 unexpected, projector.fc4.bias"),
        (wrong_tensors, r"1 of another shape, projector.fc1.bias \[3\] instead of \[448\]"),
        (drop("model-00002.safetensors"), "1 of 3 weight files are missing, model-00002.safetensors"),
        (cut_short, "a weight file is corrupt"),
        (drop("model.safetensors.index.json"), "neither model.safetensors.index.json nor model.safetensors"),
        (rewrite("model.safetensors.index.json", weight_map=3), "has no weight_map"),
        (pickled_only, r"pickled weights \(pytorch_model-00001-of-00003.bin\).* save the model as safetensors"),
        (drop("dataset_statistics.json"), "no action statistics: neither dataset_statistics.json nor norm_stats"),
        (rewrite("dataset_statistics.json", libero_goal={}), "'libero_goal': no usable action statistics"),
        (
            rewrite("dataset_statistics.json", libero_goal={"action": {"q01": [0.0] * 6, "q99": [1.0] * 6}}),
            "actions of 6, 6 and 6 numbers",
        ),
        (drop("tokenizer.json"), "tokenizer.json is missing"),
        (lambda directory: (directory / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (drop("config.json"), "config.json does not exist"),
        (lambda directory: (directory / "config.json").write_text("{"), "config.json is not valid JSON"),
        (rewrite("config.json", model_type="llava"), "model_type is 'llava', not 'openvla'"),
        (rewrite("config.json", timm_model_ids=["vit"]), "vision towers .'vit'. is not supported"),
        (rewrite("config.json", image_sizes=[224, 384]), "both towers must see one size"),
        (drop("preprocessor_config.json"), "preprocessor_config.json does not exist"),
        (rewrite("preprocessor_config.json", tvf_normalize_params=3), "three numbers for each of two towers"),
    ],
)
def test_a_broken_checkpoint_is_named_in_one_line(broken: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(broken)
    with pytest.raises(UserError, match=told) as caught:
        load(broken)
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value)


def test_a_lora_adapter_is_not_a_checkpoint(broken: Path) -> None:
    for path in broken.glob("model*"):
        path.unlink()
    (broken / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="LoRA adapter only; merge it"):
        load(broken)


def test_unknown_unnorm_key_lists_the_choices(openvla_checkpoint: Path) -> None:
    choices = "libero_10_no_noops, libero_goal_no_noops, libero_object_no_noops, libero_spatial_no_noops"
    with pytest.raises(UserError, match=f"no un-norm key 'bridge_orig'; choose an un-norm key of: {choices}"):
        load(openvla_checkpoint, key="bridge_orig")
    with pytest.raises(UserError, match=f"no statistics for 'libero_90'; choose an un-norm key of: {choices}"):
        load(openvla_checkpoint, "libero_90")
    with pytest.raises(UserError, match="not a directory; pass the folder of an OpenVLA checkpoint"):
        load(openvla_checkpoint / "nowhere")


def refused_in_one_line(directory: Path, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read_checkpoint(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "action_head--150000_checkpoint.pt",
        "noisy_action_projector--latest_checkpoint.pt",
        "proprio_projector--150000_checkpoint.pt",
        "vision_backbone--150000_checkpoint.pt",
        "lora_adapter/",
    ],
)
def test_each_side_file_of_openvla_oft_is_refused(broken: Path, name: str) -> None:
    """Its merged model alone fits OpenVLA's network, and would answer with nonsense."""
    (broken / name).mkdir() if name.endswith("/") else (broken / name).touch()
    refused_in_one_line(broken, f"holds {name.rstrip('/')}: an OpenVLA-OFT checkpoint, which decodes otherwise")


@pytest.mark.parametrize(
    "name",
    [
        "flow_head.safetensors",
        "film.pt",
        "depth_encoder.pth",
        "extra.bin",
        "last.ckpt",
        "adapter_model.safetensors",
        "adapter_config.json",
        "my_lora/adapter_config.json",
    ],
)
def test_weights_beside_the_model_are_refused_rather_than_ignored(broken: Path, name: str) -> None:
    path = broken / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    refused_in_one_line(broken, f"holds {name.split('/')[0]}, which OpenVLA has no place for")


def test_what_a_trainer_leaves_beside_the_model_is_no_part_of_it(broken: Path) -> None:
    """A folder of Hugging Face's Trainer, or with the same weights in another form, must load."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "pytorch_model.bin"):
        (broken / name).touch()
    (broken / "checkpoint-500").mkdir()
    assert read_checkpoint(broken).weights == sorted(broken.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        (
            "config.json",
            {"timm_override_act_layers": [None, "quick_gelu"]},
            r'act_layers \[null, "quick_gelu"\] is not',
        ),
        ("config.json", {"use_fused_vision_backbone": False}, "use_fused_vision_backbone false is not supported"),
        ("config.json", {"quantization_config": {"load_in_8bit": True}}, "quantization_config .* is not supported"),
        (
            "preprocessor_config.json",
            {"input_sizes": [[3, 384, 384]] * 2},
            r"input_sizes \[\[3, 384, 384\], .* does not",
        ),
        ("preprocessor_config.json", {"input_sizes": [[3, 224, 224]]}, "input_sizes .* does not go with"),
        ("preprocessor_config.json", {"input_sizes": 224}, "input_sizes 224 does not go with"),
        (
            "preprocessor_config.json",
            {"tvf_resize_params": [{"size": [256, 256]}] * 2},
            "tvf_resize_params .* does not",
        ),
        ("preprocessor_config.json", {"tvf_crop_params": [{"output_size": 200}] * 2}, "tvf_crop_params .* does not"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(
    broken: Path, name: str, changes: dict[str, Any], told: str
) -> None:
    """Each makes the authors' code compute something else from the same weights."""
    rewrite(name, **changes)(broken)
    refused_in_one_line(broken, told)


def test_settings_left_to_their_defaults_are_taken(broken: Path) -> None:
    """Null or absent they are what OpenVLA's vision backbone implies; a square image stays square either way."""
    config = json.loads((broken / "config.json").read_text())
    del config["timm_override_act_layers"]
    (broken / "config.json").write_text(json.dumps({**config, "use_fused_vision_backbone": None}))
    rewrite("preprocessor_config.json", tvf_resize_params=[{"size": 224}] * 2)(broken)
    assert read_checkpoint(broken).config.image_size == 224
