"""OpenVLA: the checkpoint's true layout, preprocessing and action decoding against values worked out apart from it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vlaad_ray.models.openvla import preprocess, random_checkpoint
from vlaad_ray.models.openvla.actions import ActionStatistics, tokens_to_actions
from vlaad_ray.models.openvla.model import OpenVlaModel
from vlaad_ray.models.openvla.settings import parse_config
from vlaad_ray.models.openvla.vision import Tower, TowerConfig
from vlaad_ray.teachers.openvla import OpenVla, load_openvla, normalise
from vlaad_ray.types import Observation

INSTRUCTIONS = (
    "pick up the milk and place it in the basket",
    "Open the middle drawer of the cabinet",
    "push the plate",
    "turn on the stove",
)


def load(directory: Path, suite: str = "libero_goal", key: str | None = None, dtype: str = "fp32") -> OpenVla:
    return load_openvla(directory, suite, key, "cpu", "bf16" if dtype == "bf16" else "fp32")


def observation(number: int) -> Observation:
    """Bars of a colour and phase of their own, so that no two images resemble each other."""
    random = np.random.default_rng(number)
    bars = np.sin(np.arange(256)[:, None, None] * (0.05 + 0.1 * number) + np.arange(3) * number) * 100 + 128
    image = np.broadcast_to(bars, (256, 256, 3)) + random.uniform(-20, 20, (256, 256, 3))
    return Observation(
        INSTRUCTIONS[number], np.zeros(8, np.float32), {"agentview": image.clip(0, 255).astype(np.uint8)}
    )


def inputs(policy: OpenVla, observations: list[Observation]) -> tuple[torch.Tensor, list[list[int]]]:
    images = [preprocess.prepare_image(each.images["agentview"], 224) for each in observations]
    pixels = normalise(torch.from_numpy(np.stack(images)), policy._normalisation).to(policy._dtype)
    return pixels, [policy._encode(each.instruction) for each in observations]


# --- the network -----------------------------------------------------------------------------------------------------


def published_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes in openvla/openvla-7b, from the two timm architectures, the authors' modeling_prismatic.py and
    Llama 2. Sums are checked against the published ones by the test below.
    """
    tensors: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = (outputs, inputs)
        if bias:
            tensors[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.bias"] = (width,)

    def tower(name: str, width: int, depth: int, mlp: int, layer_scale: bool) -> None:
        tensors[f"{name}.pos_embed"] = (1, 16 * 16, width)
        tensors[f"{name}.patch_embed.proj.weight"] = (width, 3, 14, 14)
        tensors[f"{name}.patch_embed.proj.bias"] = (width,)
        norm(f"{name}.norm", width)
        for block in (f"{name}.blocks.{number}" for number in range(depth)):
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", mlp, width)
            linear(f"{block}.mlp.fc2", width, mlp)
            if layer_scale:
                tensors[f"{block}.ls1.scale_factor"] = tensors[f"{block}.ls2.scale_factor"] = (width,)

    dinov2, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    tower(dinov2, 1024, 24, 4096, layer_scale=True)
    tensors[f"{dinov2}.cls_token"] = (1, 1, 1024)
    tensors[f"{dinov2}.reg_token"] = (1, 4, 1024)
    tower(siglip, 1152, 27, 4304, layer_scale=False)
    tensors[f"{siglip}.attn_pool.latent"] = (1, 1, 1152)
    norm(f"{siglip}.attn_pool.norm", 1152)
    for name, outputs, width in (
        ("q", 1152, 1152),
        ("kv", 2304, 1152),
        ("proj", 1152, 1152),
        ("mlp.fc1", 4304, 1152),
        ("mlp.fc2", 1152, 4304),
    ):
        linear(f"{siglip}.attn_pool.{name}", outputs, width)

    linear("projector.fc1", 4 * 2176, 2176)
    linear("projector.fc2", 4096, 4 * 2176)
    linear("projector.fc3", 4096, 4096)

    llama = "language_model.model"
    tensors[f"{llama}.embed_tokens.weight"] = tensors["language_model.lm_head.weight"] = (32064, 4096)
    tensors[f"{llama}.norm.weight"] = (4096,)
    for layer in (f"{llama}.layers.{number}" for number in range(32)):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{layer}.self_attn.{name}", 4096, 4096, bias=False)
        linear(f"{layer}.mlp.gate_proj", 11008, 4096, bias=False)
        linear(f"{layer}.mlp.up_proj", 11008, 4096, bias=False)
        linear(f"{layer}.mlp.down_proj", 4096, 11008, bias=False)
        tensors[f"{layer}.input_layernorm.weight"] = tensors[f"{layer}.post_attention_layernorm.weight"] = (4096,)
    return tensors


def test_full_size_tree_is_openvla_7bs() -> None:
    """982 tensors and 7,541,237,184 parameters: what the model hub counts in openvla/openvla-7b's safetensors."""
    model = OpenVlaModel.on_meta(parse_config(random_checkpoint.config_json("full"), Path("config.json")))
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert own == published_tensors()
    assert len(own) == 982
    assert sum(map(math.prod, own.values())) == 7_541_237_184
    by_part = {part: sum(name.startswith(part) for name in own) for part in ("vision", "projector", "language_model")}
    assert by_part == {"vision": 685, "projector": 6, "language_model": 291}


@pytest.mark.parametrize(
    ("config", "first_channel", "last_patch"),
    [
        (
            TowerConfig(16, 3, 2, 32, registers=2, class_token=True, layer_scale=True),
            [-1.23944, 1.50719, -1.93491, 0.26346],
            [-1.80592, 1.65018, -1.28193],
        ),
        (
            TowerConfig(16, 3, 2, 32, attention_pool=True),
            [1.87372, 4.28425, 0.7669, 3.29704],
            [-6.11938, -4.19462, -6.62772],
        ),
    ],
    ids=["dinov2", "siglip"],
)
def test_vision_towers_compute_what_timm_does(
    config: TowerConfig, first_channel: list[float], last_patch: list[float]
) -> None:
    """The numbers are timm 1.0.31's: VisionTransformer(img_size=28, patch_size=14, embed_dim=16, depth=3, num_heads=2,
    mlp_ratio=2, …).get_intermediate_layers(image, n={1}), with the weights and the image that are made here.
    """
    tower = Tower(config, image_size=28)
    weights = {}
    for number, (name, tensor) in enumerate(sorted(tower.state_dict().items())):
        wave = 0.3 * torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + number)
        weights[name] = wave.reshape(tensor.shape).float()
    tower.load_state_dict(weights)
    image = torch.cos(0.11 * torch.arange(3 * 28 * 28, dtype=torch.float64)).reshape(1, 3, 28, 28).float()
    features = tower(image).detach().numpy()
    assert features.shape == (1, 4, 16)
    np.testing.assert_allclose(features[0, :, 0], first_channel, atol=2e-5)  # five decimals are written down
    np.testing.assert_allclose(features[0, 3, -3:], last_patch, atol=2e-5)


def test_batched_equals_one_by_one_in_fp32(openvla_checkpoint: Path) -> None:
    """Prompts of four lengths: wrong padding, mask or positions would show in the logits of the shorter ones."""
    policy = load(openvla_checkpoint)
    observations = [observation(number) for number in range(4)]
    pixels, prompts = inputs(policy, observations)
    assert len({len(prompt) for prompt in prompts}) == 4
    tokens, logits = policy._model.decode(pixels, prompts, 7)
    for row in range(4):
        alone_tokens, alone_logits = policy._model.decode(pixels[row : row + 1], prompts[row : row + 1], 7)
        assert alone_tokens[0].tolist() == tokens[row].tolist()
        torch.testing.assert_close(alone_logits[0], logits[row], atol=1e-5, rtol=1e-5)
    together = policy.infer_batch([preprocess.prepare(each, policy.image_size) for each in observations])
    for chunk, each in zip(together, observations, strict=True):
        np.testing.assert_array_equal(chunk.actions, policy.infer(each).actions)


def test_each_row_answers_its_own_image(openvla_checkpoint: Path) -> None:
    """Images handed to the wrong environments would leave the shapes, and with one prompt the tokens, looking right."""
    policy = load(openvla_checkpoint)
    pixels, prompts = inputs(policy, [observation(number) for number in range(4)])
    _, logits = policy._model.decode(pixels, [prompts[0]] * 4, 7)
    _, turned = policy._model.decode(pixels.flip(0), [prompts[0]] * 4, 7)
    torch.testing.assert_close(turned.flip(0), logits, atol=1e-5, rtol=1e-5)
    assert min(float((logits[a] - logits[b]).abs().max()) for a in range(4) for b in range(a)) > 1e-3


def test_batched_equals_one_by_one_in_bf16(openvla_checkpoint: Path) -> None:
    """bf16 keeps 8 bits and products of other shapes may round otherwise: logits agree within 2^-7 of the largest, one
    unit in its last place, and a token may only differ where the two best are that close.
    """
    policy = load(openvla_checkpoint, dtype="bf16")
    pixels, prompts = inputs(policy, [observation(number) for number in range(4)])
    tokens, logits = policy._model.decode(pixels, prompts, 7)
    tolerance = float(logits.abs().max()) / 128
    for row in range(4):
        alone_tokens, alone_logits = policy._model.decode(pixels[row : row + 1], prompts[row : row + 1], 7)
        for step in range(7):
            best = logits[row, step].float().topk(2).values
            if alone_tokens[0, step] != tokens[row, step]:
                assert best[0] - best[1] <= tolerance
                break  # what follows another token is another sentence
            torch.testing.assert_close(alone_logits[0, step], logits[row, step], atol=tolerance, rtol=0)


def test_cached_decoding_equals_a_full_pass_over_the_sequence(openvla_checkpoint: Path) -> None:
    """A wrong position or mask after the prompt would show from the second token on. The reference has neither cache
    nor padding: one causal pass over prompt, patches and the tokens chosen.
    """
    policy = load(openvla_checkpoint)
    model = policy._model
    pixels, prompts = inputs(policy, [observation(number) for number in range(4)])
    tokens, logits = model.decode(pixels, prompts, 7)
    words = model.language_model.get_input_embeddings()
    shortest = min(range(4), key=lambda row: len(prompts[row]))
    text = words(torch.tensor(prompts[shortest] + tokens[shortest].tolist()[:-1]))
    sequence = torch.cat([text[:1], model.embed(pixels)[shortest], text[1:]])[None]
    reference = model.language_model(inputs_embeds=sequence, use_cache=False).logits[0, -7:]
    torch.testing.assert_close(logits[shortest], reference, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_decoding_uses_no_argument_that_transformers_gives_up(openvla_checkpoint: Path) -> None:
    """From 5.24 on the cache's old keyword only warns. Once it is gone it would be ignored, and each token decoded
    without those before it.
    """
    policy = load(openvla_checkpoint)
    policy.infer_batch([preprocess.prepare(observation(number), policy.image_size) for number in range(2)])


# --- the prompt ------------------------------------------------------------------------------------------------------


def test_prompt_tokens(openvla_checkpoint: Path) -> None:
    """Begin token, lower-cased instruction, and the empty token after the colon that training had."""
    policy = load(openvla_checkpoint)
    assert preprocess.prompt("Open the Drawer") == "In: What action should the robot take to open the drawer?\nOut:"
    ids = policy._encode("Open the Drawer")
    colon = policy._tokenizer.token_to_id(":")
    assert ids[0] == 1
    assert ids[-2:] == [colon, 29871]
    assert ids.count(1) == 1


# --- actions ---------------------------------------------------------------------------------------------------------


def test_tokens_to_actions_by_hand() -> None:
    """31999 is the lowest bin, 31744 the highest, 31872 the middle (-1 + 127.5 * 2/255 = 0); others are clipped."""
    statistics = ActionStatistics(
        np.array([-0.5, -1, 0, -0.2, -0.1, -0.1, 0]),
        np.array([0.5, 1, 0.4, 0.2, 0.1, 0.1, 1]),
        np.array([True] * 6 + [False]),
    )
    tokens = np.array(
        [
            [31999, 31744, 31872, 31872, 32010, 5, 31999],
            [31872, 31999, 31999, 31745, 31872, 31872, 31744],
        ]
    )
    highest = 254 / 255  # the centre of the last bin
    expected = [
        [-0.5 * highest, highest, 0.2, 0, -0.1 * highest, 0.1 * highest, 1],  # gripper 0: closed, LIBERO's +1
        [0, -highest, 0.2 - 0.2 * highest, 0.2 * highest, 0, 0, -1],
    ]
    actions = tokens_to_actions(tokens, 32000, 256, statistics)
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    # Just below and above half-open: 31808 is bin 191 (0.5020), 31809 bin 190 (0.4941).
    half = tokens_to_actions(np.array([[31872] * 6 + [31808], [31872] * 6 + [31809]]), 32000, 256, statistics)
    assert half[:, 6].tolist() == [-1, 1]


# --- the image -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"wrist": np.zeros((256, 256, 3), np.uint8)}, r"'agentview' is missing.*\(got: wrist\)"),
        (
            {"agentview": np.zeros((128, 128, 3), np.uint8)},
            r"expected \[256, 256, 3\] uint8, got \[128, 128, 3\] uint8",
        ),
    ],
)
def test_an_unsuitable_image_is_refused(openvla_checkpoint: Path, images: dict[str, np.ndarray], told: str) -> None:
    """A teacher that sees blurred images would fail more often, and nobody would know why."""
    with pytest.raises(ValueError, match=told):
        load(openvla_checkpoint).infer(Observation("push", np.zeros(8, np.float32), images))
