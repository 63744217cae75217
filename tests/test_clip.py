"""The 158 M student at a size for tests: CLIP's weights in, LoRA merged out, training that resumes to the last bit."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import clip_checkpoint
import numpy as np
import pytest
import synthetic
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Batch
from vlaad_ray.methods.vlaad.config import AuxiliaryConfig, BothConfig, DualPathConfig, LossWeights
from vlaad_ray.methods.vlaad.learner import AuxiliaryHeads, Learner
from vlaad_ray.methods.vlaad.losses import direction_loss
from vlaad_ray.models.student import STUDENTS, backbone, checkpoint, presets
from vlaad_ray.models.student.clip import PIXEL_MEAN, PIXEL_STD, ClipConfig, ClipStudent
from vlaad_ray.models.student.preprocess import normalise_images
from vlaad_ray.models.student.text import TextTokenizer
from vlaad_ray.models.student.vlaad_158m import Vlaad158mConfig
from vlaad_ray.train import prepare, resume
from vlaad_ray.train.count import CountConfig, count
from vlaad_ray.train.data import episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, fit, make_optimiser
from vlaad_ray.train.survey import survey

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
RED = "pick up the red cup"
CLIP = STUDENTS["vlaad_158m"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    directory = tmp_path_factory.mktemp("clip")
    return directory, clip_checkpoint.write(directory)


def settings(directory: Path, **changes: object) -> TrainConfig:
    clip = {"student": "vlaad_158m", "network": Vlaad158mConfig(backbone=str(directory))}
    return prepare.complete(TrainConfig(**{"data": Path("data"), "out": Path("out"), **clip, **changes}))


def designed(directory: Path, image_size: int = 0, **changes: object) -> presets.Design:
    """With a narrow decoder."""
    wish = presets.Wish(texts=[], image_size=image_size, folder=Path("nowhere"))
    design = presets.design(CLIP, Vlaad158mConfig(backbone=str(directory)), wish)
    return design._replace(config=dataclasses.replace(design.config, width=32, heads=2, mlp=32, **changes))


def made(directory: Path, **changes: object) -> tuple[ClipStudent, TextTokenizer]:
    """A student ready to train, its adapters no longer zero."""
    network, student_config, tokenizer = designed(directory, **changes)
    student = presets.make(CLIP, network, student_config, seed=0)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return student.eval(), tokenizer


def inputs(cameras: int = 1, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, cameras, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randn(batch, 8, generator=generator)


def tokens(tokenizer: TextTokenizer, *texts: str) -> torch.Tensor:
    return torch.from_numpy(tokenizer(texts))


# ------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("config", [CountConfig(), CountConfig(cameras=("agentview", "wrist"), proprio=False)])
def test_158_million_parameters_of_which_8_6_million_are_trained(config):
    counts = count(config)
    assert counts.total == pytest.approx(158e6, rel=0.01)
    assert counts.deployed == pytest.approx(158e6, rel=0.01)
    assert counts.trainable == pytest.approx(8.6e6, rel=0.05)


# ------------------------------------------------------------------------------------------------------ CLIP's weights


def test_pictures_and_texts_are_encoded_as_transformers_own_clip_does(clip):
    """Weights under a wrong name, another pooling or another tokenization would pass unnoticed otherwise."""
    directory, reference = clip
    config, tokenizer = backbone.read(str(directory))
    student = ClipStudent(config).eval()
    backbone.load(student, directory)
    images, _ = inputs()
    texts = [RED, "Zögern, 1 2 3!", "x"]
    theirs = CLIPTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    length = theirs["input_ids"].shape[1]
    assert torch.equal(tokens(tokenizer, *texts)[:, :length], theirs["input_ids"])
    assert length <= backbone.KEPT_POSITIONS
    with torch.no_grad():
        expected = reference.text_model(input_ids=theirs["input_ids"]).pooler_output
        # A batch padded to another length adds floats in another order.
        torch.testing.assert_close(student.encode_text(tokens(tokenizer, *texts)), expected, atol=1e-4, rtol=1e-4)
        pixels = normalise_images(images, student.pixel_scale, student.pixel_shift)[:, 0]
        seen = student.vision(pixels).last_hidden_state
        assert torch.equal(seen, reference.vision_model(pixel_values=pixels).last_hidden_state)


def test_pixels_are_normalised_as_clip_was_trained(clip):
    student, _ = made(clip[0])
    images, _ = inputs()
    expected = (images.double().permute(0, 1, 4, 2, 3) / 255 - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(
        PIXEL_STD
    )[:, None, None]
    ours = normalise_images(images, student.pixel_scale, student.pixel_shift)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)  # float32


def test_77_text_positions_are_stretched_to_248_as_long_clip_does(clip):
    """Against numpy's own interpolation: position 20 + i/4 for the i-th beyond the 20 kept, the last step continued."""
    directory, reference = clip
    old = reference.text_model.embeddings.position_embedding.weight.detach().numpy()
    student, _ = made(directory)
    new = student.text.embeddings.position_embedding.weight.detach().numpy()
    at = np.concatenate([np.arange(20), np.arange(20, 77, 0.25)])
    longer = np.concatenate([old, [2 * old[-1] - old[-2]]])
    expected = np.stack([np.interp(at, np.arange(78), column) for column in longer.T], 1)
    assert new.shape == (248, 32)
    np.testing.assert_allclose(new, expected, atol=1e-6)


def test_a_long_clip_is_taken_as_it_is(tmp_path):
    reference = clip_checkpoint.write(tmp_path, positions=248)
    student, _ = made(tmp_path)
    ours, theirs = (text.embeddings.position_embedding.weight for text in (student.text, reference.text_model))
    assert torch.equal(ours, theirs)


def test_a_long_text_is_cut_before_its_end_token_and_each_is_encoded_as_if_alone(clip):
    student, tokenizer = made(clip[0])
    texts = ["red cup " * 300, RED, "cup"]
    encoded = tokenizer(texts)
    assert encoded.shape == (3, 248)
    assert encoded[0, -1] == tokenizer.end and (encoded[0, :-1] != tokenizer.end).all()
    together = student.encode_text(torch.from_numpy(encoded))
    alone = torch.cat([student.encode_text(tokens(tokenizer, text)) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)  # sums in another order


def damage_weights(change):
    def damage(directory: Path) -> None:
        tensors = load_file(directory / backbone.WEIGHTS)
        change(tensors)
        save_file(tensors, directory / backbone.WEIGHTS)

    return damage


def rewrite(name: str, text: str):
    return lambda directory: (directory / name).write_text(text)


QUERY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
        (rewrite("config.json", "{"), "not valid JSON"),
        (rewrite("config.json", json.dumps({"model_type": "siglip"})), "does not describe a CLIP"),
        (rewrite("model.safetensors", "x" * 100), "is corrupt"),
        (rewrite("tokenizer.json", "{}"), "is not a tokenizer"),
        (damage_weights(lambda tensors: tensors.pop(QUERY)), r"1 tensors missing.*layers.0.self_attn.q_proj.weight"),
        (damage_weights(lambda tensors: tensors.update({QUERY: torch.zeros(2, 2)})), r"\[2, 2\], expected \[48, 48\]"),
        (damage_weights(lambda tensors: tensors.update({"text_model.extra": torch.zeros(1)})), "text.extra"),
    ],
)
def test_a_backbone_that_is_none_is_one_clear_line(tmp_path, damage, message):
    clip_checkpoint.write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        made(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["/nowhere/clip", "no such name"])
def test_a_backbone_that_is_nowhere_is_one_clear_line(name):
    with pytest.raises(UserError, match=f"--backbone {name}: neither a directory nor a model"):
        backbone.read(name)


def test_a_backbone_fixes_the_image_size(clip):
    with pytest.raises(UserError, match="--image-size 64: the backbone sees 32 pixels"):
        made(clip[0], image_size=64)


def test_a_random_backbone_is_drawn_once_and_read_like_any_other(tmp_path):
    shape = ClipConfig(image_size=32, vision_width=32, vision_layers=1, vision_heads=2, vision_mlp=32)
    shape = dataclasses.replace(shape, text_width=32, text_layers=1, text_heads=2, text_mlp=32)
    for name in ("one", "other"):
        backbone.write_random(tmp_path / name, [RED], shape, seed=3)
    assert backbone.fingerprint(str(tmp_path / "one")) == backbone.fingerprint(str(tmp_path / "other"))
    student, tokenizer = made(tmp_path / "one")
    assert student.config.vocabulary == 49408, "counts hold whatever the tokenizer"
    assert student.encode_text(tokens(tokenizer, RED, "grasp it")).std() > 0


# ---------------------------------------------------------------------------------------------------------------- LoRA


def test_merged_adapters_answer_as_they_did_beside_the_weights(clip):
    student, tokenizer = made(clip[0])
    red = tokens(tokenizer, *[RED] * 3)
    with torch.no_grad():
        learner = Learner(student, phases=0)
        before = learner(*inputs(), red, red)[:2]
        CLIP.finish(student)
        after = learner(*inputs(), red, red)[:2]
    assert not any("lora" in name for name in student.state_dict())
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # W x + B A x against (W + B A) x in float32


def test_only_adapters_and_head_are_trained_and_at_first_nothing_has_changed(clip):
    network, student_config, tokenizer = designed(clip[0])
    student = presets.make(CLIP, network, student_config, seed=0)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith(("vision.", "text.")) and "lora" not in name for name in frozen)
    assert all("lora" in name for name in student.vision.state_dict() if f"vision.{name}" not in frozen)
    plain = ClipStudent(student_config)
    backbone.load(plain, clip[0])
    red = tokens(tokenizer, RED)
    assert torch.equal(student.encode_text(red), plain.encode_text(red))


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def exported(clip, tmp_path_factory) -> tuple[Path, ClipStudent]:
    student, tokenizer = made(clip[0], cameras=("agentview", "wrist"))
    CLIP.finish(student)
    directory = tmp_path_factory.mktemp("exported")
    checkpoint.save_pretrained(directory, student, tokenizer, {"render": "fast"})
    return directory, student


def test_a_checkpoint_round_trip_gives_the_same_answers(exported):
    directory, student = exported
    loaded = checkpoint.from_pretrained(directory)
    red = tokens(loaded.tokenizer, *[RED] * 3)
    with torch.no_grad():
        assert torch.equal(loaded.student(*inputs(2), red), student(*inputs(2), red))
    assert loaded.student.config == student.config


def test_a_deployed_clip_needs_no_peft_and_a_small_student_no_transformers(exported):
    code = f"""
import sys
sys.modules["peft"] = None
from vlaad_ray.deploy.policy import StudentPolicy
assert "transformers" not in sys.modules
StudentPolicy.from_pretrained({str(exported[0])!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_two_cameras_are_told_apart(exported):
    """Without their own embedding the decoder could not know which picture a patch is from."""
    _, student = exported
    images, proprio = inputs(2)
    instruction = torch.zeros(3, student.config.text_width)
    with torch.no_grad():
        one, other = (student.decide(student.perceive(seen, proprio, instruction)) for seen in (images, images.flip(1)))
    assert not torch.allclose(one, other, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ training


def learning(directory: Path, root: Path, **changes: object) -> tuple[TrainConfig, tuple, Learner]:
    data, annotations = synthetic.write_dataset(root, 4, steps=8)
    config = settings(directory, data=data, annotations=annotations, epochs=2, batch_size=8, **changes)
    method, preset = METHODS[config.objective], STUDENTS[config.student]
    facts = survey(data, config.annotations, 0.25, method)
    config, student_config, tokenizer = prepare.design(config, facts, root)
    texts = {text: index for index, text in enumerate(facts.texts)}
    phases = {phase: index for index, phase in enumerate(facts.phases)}
    parts = (episode_frames(source, texts, phases, student_config, method.columns) for source in facts.sources)
    frames = gather(parts, facts.steps)
    narrow = {"width": 32, "heads": 2, "mlp": 32} if config.student == "vlaad_158m" else {"width": 8, "hidden": 32}

    def fresh() -> Setup:
        student = presets.make(preset, config.network, dataclasses.replace(student_config, **narrow), config.seed)
        learner = method.learner(config.method, student, facts.phases)
        encoded = torch.from_numpy(tokenizer(facts.texts))
        return Setup(learner, learner, make_optimiser(learner, config), frames, encoded, facts.phases, config, method)

    return fresh


def state_of(setup: Setup) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in setup.learner.state_dict().items()}


def test_in_bfloat16_a_resumed_run_equals_an_uninterrupted_one(clip, tmp_path):
    """Adapters, head, auxiliary heads, AdamW's moments and random numbers; and the backbone isn't stored again."""
    fresh = learning(clip[0], tmp_path, objective="both", precision="bf16")
    setup = fresh()
    before = state_of(setup)
    saved: list[Path] = []

    def on_epoch(progress: Progress) -> None:
        saved.append(tmp_path / f"epoch{progress.epoch}")
        resume.save(saved[-1], setup.learner, setup.optimiser, progress)

    progress = Progress()
    fit(setup, progress, on_epoch)
    whole = state_of(setup)
    torch.rand(7)  # another process
    again = fresh()
    fit(again, resume.restore(saved[0], again.learner, again.optimiser), lambda _: None)
    resumed = state_of(again)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    stored = load_file(saved[0] / resume.TRAINED).keys()
    frozen = whole.keys() - stored
    assert all(torch.equal(before[name], whole[name]) for name in frozen)
    assert {name.rsplit(".", 1)[0] for name in frozen} >= {"student.text.embeddings.token_embedding"}
    changed = {name for name in stored if not torch.equal(before[name], whole[name])}
    assert stored - changed == {"student.proprio_mean", "student.proprio_std"}
    parts = progress.history[-1]["train"]
    assert min(parts[f"loss_{part}"] for part in ("full", "image", "phase", "direction")) > 0


@pytest.mark.parametrize(("student", "objective"), [("small", "auxiliary"), ("small", "both"), ("vlaad_158m", "bc")])
def test_every_objective_trains_every_student(clip, tmp_path, student, objective):
    """All its parts count, no other does, and every parameter that an optimiser holds gets a gradient."""
    changes = {"student": student, "network": None} if student == "small" else {}
    setup = learning(clip[0], tmp_path, objective=objective, precision="fp32", **changes)()
    progress = Progress()
    fit(setup, progress, lambda _: None)
    used = {"auxiliary": {"image", "phase", "direction"}, "bc": {"image"}}
    found = progress.history[0]["train"]
    parts = {name.removeprefix("loss_") for name, value in found.items() if name.startswith("loss_") and value}
    assert parts == used.get(objective, {"full", "image", "phase", "direction"})
    assert all(
        parameter in setup.optimiser.state for parameter in setup.learner.parameters() if parameter.requires_grad
    )


# --------------------------------------------------------------------------------------------------- auxiliary losses


def test_the_contrast_of_directions_by_hand():
    """Frames 0 and 1 move left, frame 2 moves up. S = log of [[2, 1], [3, 1], [1, 4]]."""
    similarity = torch.tensor([[2.0, 1], [3, 1], [1, 4]]).log()
    frames = -(math.log(2 / 3) + math.log(3 / 4) + math.log(4 / 5)) / 3
    texts = -(math.log((2 + 3) / (2 + 3 + 1)) + math.log(4 / (1 + 1 + 4))) / 2
    loss = direction_loss(similarity, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx((frames + texts) / 2, rel=1e-5)


def test_frames_that_share_a_direction_do_not_push_each_other_away():
    """A batch holds the same text many times: with those as negatives, perfect embeddings would still cost log(n)."""
    perfect = 50 * torch.eye(2)[torch.tensor([0, 0, 0, 1, 1])]
    assert direction_loss(perfect, torch.tensor([0, 0, 0, 1, 1])).item() == pytest.approx(0, abs=1e-5)
    assert direction_loss(torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-6)


def test_the_objectives_weights_are_those_of_the_paper_and_its_blog():
    assert DualPathConfig(alpha=0.5).weights == LossWeights(full=1.0, image=0.5)
    assert AuxiliaryConfig().weights == LossWeights(full=0.0, image=1.0, phase=0.1, direction=0.05)
    assert BothConfig(alpha=0.5).weights == LossWeights(full=1.0, image=0.5, phase=0.1, direction=0.05)


def test_the_total_is_the_weighted_sum_of_the_parts(clip):
    student, tokenizer = made(clip[0])
    settings, both = BothConfig(alpha=0.5), METHODS["both"]
    learner = both.learner(settings, student, ("approaching", "grasping", "placing"))
    columns = {"description": torch.tensor([0, 0, 0]), "direction": torch.tensor([1, 2, 2])}
    texts = tokens(tokenizer, RED, "moving left", "moving up")
    actions, phase = torch.rand(3, 5, 7) * 2 - 1, torch.tensor([0, 1, 2])
    batch = Batch(*inputs(), tokens(tokenizer, *[RED] * 3), actions, phase, columns, texts)
    total, parts = both.loss(settings, learner, both.forward(settings, learner, batch), batch, 1.5)
    expected = sum(getattr(settings.weights, name) * part for name, part in parts.items())
    assert len(parts) == 4
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_similarities_stay_exact_in_bfloat16():
    """At a scale of 14 and more, logits rounded to 8 bits would blur what the contrast is about."""
    heads = AuxiliaryHeads(8, 2, 16)
    summary, directions = torch.randn(4, 8), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        _, similarity = heads(summary, directions)
    assert similarity.dtype == torch.float32
