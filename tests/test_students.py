"""The student network, its text, its loss and its files; the training loop without Ray."""

import contextlib
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Batch, Learner, action_loss, dimension_weights
from vlaad_ray.methods.vlaad.config import DualPathConfig
from vlaad_ray.methods.vlaad.learner import Answers
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.student.bins import cross_entropy
from vlaad_ray.models.student.model import Student
from vlaad_ray.models.student.preprocess import (
    actions_to_bins,
    bins_to_actions,
    chunk_targets,
    random_shift,
    resize_image,
)
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import TextTokenizer, train_tokenizer
from vlaad_ray.train.data import episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, fit, learning_rate, loss_weights, make_optimiser, oversampled
from vlaad_ray.train.prepare import complete
from vlaad_ray.train.resume import restore, save
from vlaad_ray.train.survey import NO_PHASE, survey

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
TINY = SmallConfig(image_size=32, width=8, feature_width=32, hidden=32, text_width=32, text_length=24)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer([*synthetic.INSTRUCTIONS, "approaching, moving left"], TINY.text_length)


@pytest.fixture
def student(tokenizer: TextTokenizer) -> SmallStudent:
    torch.manual_seed(0)
    student = SmallStudent(dataclasses.replace(TINY, vocabulary=tokenizer.vocabulary))
    for block in (block for camera in student.cameras for block in camera.blocks):
        torch.nn.init.normal_(block.film.weight)  # as after training: at the start the text doesn't steer yet
        torch.nn.init.normal_(block.second.weight, std=0.1)
    return student.eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randn(batch, 8, generator=generator)


def tokens(tokenizer: TextTokenizer, *texts: str) -> torch.Tensor:
    return torch.from_numpy(tokenizer(texts))


# ------------------------------------------------------------------------------------------------------------ network


def test_the_image_path_never_sees_the_description(student, tokenizer):
    """A leak would train on what is absent at deployment."""
    red = tokens(tokenizer, *["red cup"] * 3)
    learner = METHODS["dual_path"].learner(DualPathConfig(), student, ())
    one = learner(*inputs(), red, tokens(tokenizer, *["moving left"] * 3))
    other = learner(*inputs(), red, tokens(tokenizer, *["grasping"] * 3))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.image, student(*inputs(), red))
    assert not torch.allclose(one.full, other.full)


def test_the_instruction_changes_what_the_cameras_report(student, tokenizer):
    """Without FiLM the picture is encoded blindly, and distractors can't be told from the target."""
    images, _ = inputs(1)
    pixels = images[:, 0].permute(0, 3, 1, 2).float()
    red, green = (student.encode_text(tokens(tokenizer, text)) for text in synthetic.INSTRUCTIONS)
    assert not torch.allclose(student.cameras[0](pixels, red), student.cameras[0](pixels, green))


def test_each_text_is_encoded_as_if_it_were_alone(student, tokenizer):
    """Padding beside a longer text, and the deduplication of a batch, must not show."""
    texts = ["red cup", "pick up the green cup and place it there", "red cup"]
    together = student.encode_text(tokens(tokenizer, *texts))
    alone = torch.cat([student.encode_text(tokens(tokenizer, text)) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)  # sums in another order


def test_without_proprioception_it_is_ignored(tokenizer):
    blind = SmallStudent(dataclasses.replace(TINY, proprio=False, vocabulary=tokenizer.vocabulary)).eval()
    images, proprio = inputs()
    red = tokens(tokenizer, *["red cup"] * 3)
    assert torch.equal(blind(images, proprio, red), blind(images, proprio * torch.nan, red))


def test_the_small_preset_stays_small():
    assert 5e6 < sum(parameter.numel() for parameter in SmallStudent(SmallConfig()).parameters()) < 9e6


def test_an_image_size_that_the_trunk_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        SmallStudent(SmallConfig(image_size=100))


# -------------------------------------------------------------------------------------------------- text, bins, pixels


def test_any_text_encodes_and_long_ones_are_cut(tokenizer):
    encoded = tokenizer(["pick up the crème brûlée 🥄", "x" * 500, "Red  Cup", "red  cup"])
    assert encoded.shape == (4, TINY.text_length)
    assert encoded.max() < tokenizer.vocabulary
    assert (encoded[2] == encoded[3]).all()


def test_the_tokenizer_does_not_depend_on_the_order_of_the_texts(tmp_path):
    texts = [*synthetic.INSTRUCTIONS, "grasping the cup", "moving left and down"]
    for name, order in (("a", texts), ("b", texts[::-1] * 2)):
        train_tokenizer(order, 16).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_actions_survive_binning_to_half_a_bin_and_the_gripper_exactly():
    actions = np.linspace(-1, 1, 257, dtype=np.float32)[:, None].repeat(7, 1)
    actions[:, 6] = np.where(np.arange(257) % 2, 1, -1)
    logits = torch.nn.functional.one_hot(torch.from_numpy(actions_to_bins(actions, 256)), 256).float() * 50
    decoded = bins_to_actions(logits).numpy()
    assert np.abs(decoded[:, :6] - actions[:, :6]).max() <= 1 / 256 + 1e-6
    assert (decoded[:, 6] == actions[:, 6]).all()


def test_an_action_is_the_mean_of_what_is_predicted():
    """The likeliest bin alone follows the noise of the labels (docs/experiments.md)."""
    probabilities = torch.full((7, 256), 1e-9)
    probabilities[0, 64], probabilities[0, 192] = 0.75, 0.25
    expected = 0.75 * (64.5 / 128 - 1) + 0.25 * (192.5 / 128 - 1)
    assert abs(float(bins_to_actions(probabilities.log())[0]) - expected) < 1e-5


def test_the_gripper_goes_by_probability_mass_not_by_the_highest_bin():
    probabilities = torch.full((7, 256), 1e-6)
    probabilities[6, 0], probabilities[6, 200:203] = 0.4, 0.2
    assert bins_to_actions(probabilities.log())[6] == 1.0


def test_actions_outside_the_range_go_to_the_outermost_bins():
    assert actions_to_bins(np.array([-1.5, -1.0, 1.0, 7.0]), 256).tolist() == [0, 0, 255, 255]


def test_a_chunk_beyond_the_end_repeats_the_last_action():
    actions = np.arange(3, dtype=np.float32)[:, None].repeat(7, 1)
    assert chunk_targets(actions, 5)[:, :, 0].tolist() == [[0, 1, 2, 2, 2], [1, 2, 2, 2, 2], [2, 2, 2, 2, 2]]


def test_a_random_shift_moves_each_picture_whole_and_by_at_most_its_reach():
    """Mixing up axes here would scramble every training picture."""
    image = np.zeros((2, 1, 96, 96, 3), np.uint8)
    image[:, :, 48, 48] = (10, 20, 30)
    shifted = random_shift(image, np.random.default_rng(0))
    for sample in shifted[:, 0]:
        ((y, x),) = np.argwhere(sample[..., 0])
        assert tuple(sample[y, x]) == (10, 20, 30)
        assert max(abs(y - 48), abs(x - 48)) <= 4


def test_resizing_keeps_the_mean_and_leaves_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert resize_image(image, 128) is image
    assert resize_image(image, 96).mean() == pytest.approx(image.mean(), abs=1)


# --------------------------------------------------------------------------------------------------------------- loss


SEVEN = dimension_weights(torch.zeros(7))


def of_actions(actions: torch.Tensor) -> Batch:
    """A batch that only its actions are looked at of."""
    nothing = torch.zeros(len(actions))
    return Batch(nothing, nothing, nothing, actions, nothing)


def test_a_uniform_guess_costs_log_n_whatever_the_chunk():
    targets = torch.randint(0, 256, (4, 5, 7))
    assert cross_entropy(torch.zeros(4, 5, 7, 256), targets, SEVEN, 1.5).item() == pytest.approx(
        math.log(256), rel=1e-5
    )


def test_without_smoothing_it_is_weighted_cross_entropy_with_rotations_doubled():
    """Against the formula of METHOD written out with torch's own cross-entropy."""
    logits, targets = torch.randn(4, 5, 7, 256), torch.randint(0, 256, (4, 5, 7))
    each = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), targets.reshape(-1), reduction="none")
    weights = torch.tensor([1.0, 1, 1, 2, 2, 2, 1])
    expected = (each.view(4, 5, 7) * weights).sum() / (4 * 5 * weights.sum())
    assert cross_entropy(logits, targets, SEVEN, 0.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_numbers_and_steps_of_a_chunk_weigh_as_asked():
    """By hand: a loss of 1 at one number of one step, and of 0 elsewhere, is that number's share of all weights."""
    config = TrainConfig(Path(), Path(), chunk=2, pose_weights=(2.0, 1.0, 4.0), chunk_weights=(1.0, 0.5))
    weights = loss_weights(config, torch.zeros(1, 2, 7))
    assert weights.tolist() == [[2, 2, 2, 1, 1, 1, 4], [1, 1, 1, 0.5, 0.5, 0.5, 2]]
    actions = torch.zeros(1, 2, 7)
    actions[0, 1, 6] = 1.0
    student = SimpleNamespace(decode=lambda output: SimpleNamespace(actions=output))
    loss = Student.imitation_loss(student, torch.zeros(1, 2, 7), actions, weights, 0.0)
    assert loss.item() == pytest.approx(2 / weights.sum().item())


def test_frames_at_which_the_gripper_changes_are_seen_more_often():
    actions = np.full((6, 3, 7), -1.0, np.float32)
    actions[2, 1:, 6] = 1.0  # it closes within the chunk
    actions[4:, :, 6] = 1.0  # closed throughout
    frames = SimpleNamespace(actions=actions, training=np.array([0, 2, 4, 5]))
    assert oversampled(frames, 6, 1).tolist() == [0, 2, 4, 5]
    assert oversampled(frames, 6, 3).tolist() == [0, 2, 4, 5, 2, 2]
    assert oversampled(frames, None, 3).tolist() == [0, 2, 4, 5]


def test_smoothing_prefers_a_near_miss():
    target = torch.full((1, 1, 7), 100)
    near, far = (torch.zeros(1, 1, 7, 256).index_fill(3, torch.tensor([bin]), 5.0) for bin in (101, 150))
    assert cross_entropy(near, target, SEVEN, 1.5) < cross_entropy(far, target, SEVEN, 1.5)
    assert cross_entropy(near, target, SEVEN, 0.0) == pytest.approx(cross_entropy(far, target, SEVEN, 0.0).item())


def test_alpha_weighs_the_image_path(student):
    answers = Answers(torch.randn(2, 5, 7, 256), torch.randn(2, 5, 7, 256))
    batch = of_actions(torch.rand(2, 5, 7) * 2 - 1)
    total, parts = METHODS["dual_path"].loss(DualPathConfig(alpha=0.3), Learner(student), answers, batch, 1.5)
    assert total.item() == pytest.approx((parts["full"] + 0.3 * parts["image"]).item(), rel=1e-5)
    total, parts = METHODS["bc"].loss(None, Learner(student), answers, batch, 1.5)
    assert total == parts["image"] == action_loss(student, answers.image, batch, 1.5)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def saved(student: SmallStudent, tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    student.proprio_mean += 0.5
    checkpoint.save_pretrained(tmp_path / "student", student, tokenizer, {"render": "fast"})
    return tmp_path / "student"


def test_a_checkpoint_round_trip_gives_the_same_answers(student, tokenizer, saved):
    loaded = checkpoint.from_pretrained(saved)
    text = ["pick up the red cup"] * 3
    assert torch.equal(
        loaded.student(*inputs(), torch.from_numpy(loaded.tokenizer(text))),
        student(*inputs(), tokens(tokenizer, *text)),
    )
    assert loaded.student.config == student.config
    assert loaded.training == {"render": "fast"}


def rewrite_config(directory: Path, **changes: object) -> None:
    path = directory / checkpoint.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(name: str):
    return lambda directory: (directory / name).unlink()


def truncate(name: str):
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:1000])


def test_halves_of_two_checkpoints_are_not_taken_for_one(saved, tmp_path):
    """A checkpoint replaced while it is read, or copied in part: one's settings with the other's weights ran."""
    other = checkpoint.from_pretrained(saved)
    other.student.head[-1].bias.data += 1
    checkpoint.save_pretrained(tmp_path / "other", other.student, other.tokenizer, {})
    (saved / checkpoint.WEIGHTS).write_bytes((tmp_path / "other" / checkpoint.WEIGHTS).read_bytes())
    with pytest.raises(UserError, match="is not the file that config"):
        checkpoint.from_pretrained(saved)


def test_a_checkpoint_is_named_without_reading_its_weights(saved):
    """The name cost all of the weights, in memory. Those of earlier versions are hashed, to the same name."""
    name = f"student-{hashlib.sha256((saved / checkpoint.WEIGHTS).read_bytes()).hexdigest()[:8]}"
    config = json.loads((saved / checkpoint.CONFIG).read_text())
    del config["files"]
    (saved / checkpoint.CONFIG).write_text(json.dumps(config))
    assert checkpoint.checkpoint_name(saved) == name
    checkpoint.from_pretrained(saved)
    config["files"] = {checkpoint.WEIGHTS: hashlib.sha256((saved / checkpoint.WEIGHTS).read_bytes()).hexdigest()}
    (saved / checkpoint.CONFIG).write_text(json.dumps(config))
    (saved / checkpoint.WEIGHTS).unlink()
    assert checkpoint.checkpoint_name(saved) == name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop(checkpoint.CONFIG), "config.json does not exist"),
        (drop(checkpoint.WEIGHTS), "model.safetensors is missing"),
        (drop(checkpoint.TOKENIZER), "tokenizer.json is missing"),
        (truncate(checkpoint.WEIGHTS), "model.safetensors is corrupt"),
        (truncate(checkpoint.TOKENIZER), "tokenizer.json is not a tokenizer"),
        (lambda directory: (directory / checkpoint.CONFIG).write_text("{"), "not valid JSON"),
        (lambda directory: rewrite_config(directory, format="openvla"), "not a vlaad_ray student"),
        (lambda directory: rewrite_config(directory, schema_version=99), "schema version 99"),
        (lambda directory: rewrite_config(directory, student={"cameras": [], "depth": 3}), "depth"),
        (
            lambda d: rewrite_config(d, student={**dataclasses.asdict(TINY), "hidden": 64}),
            "doesn't match its config.json",
        ),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_one_clear_line(saved, damage, message):
    damage(saved)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.from_pretrained(saved)
    assert "\n" not in str(raised.value)


# --------------------------------------------------------------------------------------------------- data and training


def frames_of(data: Path, annotations: Path | None, config: SmallConfig, reverse: bool = False):
    method = METHODS["dual_path" if annotations else "bc"]
    facts = survey(data, annotations, 0.25, method)
    texts = {text: index for index, text in enumerate(facts.texts)}
    phases = {phase: index for index, phase in enumerate(facts.phases)}
    sources = facts.sources[::-1] if reverse else facts.sources
    parts = (episode_frames(source, texts, phases, config, method.columns) for source in sources)
    return facts, gather(parts, facts.frames(config.cameras))


def test_frames_join_pictures_actions_and_labels_of_one_step(tmp_path):
    """An off-by-one between picture, target and description would pass unnoticed otherwise."""
    data, annotations = synthetic.write_dataset(tmp_path, 2, steps=12)
    facts, frames = frames_of(data, annotations, TINY)
    rows = np.concatenate([frames.training, frames.validation])
    assert len(rows) == 24
    for row in rows:
        red = frames.images[row, 0, 8, :, 0].astype(int)  # the red cup's row of the picture
        green = frames.images[row, 0, 24, :, 1].astype(int)
        instruction = facts.texts[frames.instruction[row]]
        column = np.argwhere((red if "red" in instruction else green) > 128).mean()
        # A cup is 6 pixels wide and stops at the border.
        assert frames.actions[row, 0, 0] == pytest.approx(2 * (column - 3) / 26 - 1, abs=0.2)
        description = facts.texts[frames.own["description"][row]]
        assert ("left" in description) == (frames.actions[row, 0, 0] < 0)
        assert description.startswith(facts.phases[frames.phase[row]])


def test_the_order_of_frames_does_not_depend_on_how_they_arrive(tmp_path):
    data, annotations = synthetic.write_dataset(tmp_path, 4, steps=5)
    (_, one), (_, other) = (frames_of(data, annotations, TINY, reverse) for reverse in (False, True))
    assert np.array_equal(one.proprio[one.training], other.proprio[other.training])
    assert np.array_equal(one.images[one.validation], other.images[other.validation])


def test_frames_without_pictures_are_left_out_and_their_actions_still_count(tmp_path):
    whole = synthetic.episode(0, steps=9)
    images = {name: tuple(x if i % 3 == 0 else None for i, x in enumerate(seen)) for name, seen in whole.images.items()}
    store.write_episode(tmp_path, dataclasses.replace(whole, images=images), {"render": "fast"})
    facts, frames = frames_of(tmp_path, None, TINY)
    assert len(frames.training) == 3
    assert facts.phases == (NO_PHASE,)
    assert facts.frames(TINY.cameras) == 3, "memory is set aside for these"
    assert np.array_equal(frames.actions[frames.training[1]], whole.actions[3:8])


def test_whole_episodes_are_held_out_for_each_task_and_stay_so_when_others_join(tmp_path):
    data, _ = synthetic.write_dataset(tmp_path, 16, steps=2)
    before = {source.path.name for source in survey(data, None, 0.25).sources if source.held_out}
    assert len([name for name in before if "-t00-" in name]) == len([name for name in before if "-t01-" in name]) == 2
    extra = dataclasses.replace(synthetic.episode(0, 2).key, task=5)
    store.write_episode(data, dataclasses.replace(synthetic.episode(0, 2), key=extra), {"render": "fast"})
    assert before <= {source.path.name for source in survey(data, None, 0.25).sources if source.held_out}


def test_what_cannot_be_trained_on_is_said_before_training(tmp_path):
    data, annotations = synthetic.write_dataset(tmp_path, 2, steps=4)
    failed = dataclasses.replace(synthetic.episode(0, 4), success_final=False)
    store.write_episode(tmp_path / "failures", failed, {"render": "fast"})
    with pytest.raises(UserError, match="no successful episode"):
        survey(tmp_path / "failures", None, 0.1)
    store.annotation_path(annotations, synthetic.episode(1).key.name).unlink()
    with pytest.raises(UserError, match="lacks 1 of the dataset's successful episodes"):
        survey(data, annotations, 0.1)


def run(setup: Setup, progress: Progress, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    class Stop(Exception):
        pass

    def on_epoch(progress: Progress) -> None:
        if progress.epoch == stop_after:
            raise Stop

    with contextlib.suppress(Stop):
        fit(setup, progress, on_epoch)
    return {name: tensor.clone() for name, tensor in setup.learner.state_dict().items()}


def test_training_stopped_and_continued_equals_training_in_one_go(tmp_path, tokenizer):
    """Any state that is not saved (optimiser, random numbers, learning rate) would show."""
    data, annotations = synthetic.write_dataset(tmp_path, 4, steps=10)
    config = complete(TrainConfig(data, tmp_path / "out", annotations, epochs=3, batch_size=8, precision="fp32"))
    method = METHODS[config.objective]
    facts, frames = frames_of(data, annotations, TINY)
    texts = torch.from_numpy(tokenizer(facts.texts))

    def fresh() -> Setup:
        torch.manual_seed(0)
        student = SmallStudent(dataclasses.replace(TINY, vocabulary=tokenizer.vocabulary))
        learner = method.learner(config.method, student, facts.phases)
        return Setup(learner, learner, make_optimiser(learner, config), frames, texts, facts.phases, config, method)

    whole = run(fresh(), Progress())
    interrupted, progress = fresh(), Progress()
    run(interrupted, progress, stop_after=1)
    save(tmp_path / "saved", interrupted.learner, interrupted.optimiser, progress)
    torch.rand(7)  # another process
    again = fresh()
    progress = restore(tmp_path / "saved", again.learner, again.optimiser)
    resumed = run(again, progress)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [record["epoch"] for record in progress.history] == [1, 2, 3]


def test_a_time_limit_ends_training_with_the_learning_rate_at_its_end(tmp_path, tokenizer):
    """Thirty seconds, of which a step takes one."""
    data, annotations = synthetic.write_dataset(tmp_path, 2, steps=10)
    config = complete(TrainConfig(data, tmp_path / "out", objective="bc", epochs=10**6, batch_size=8, max_minutes=0.5))
    facts, frames = frames_of(data, annotations, TINY)
    learner = Learner(SmallStudent(dataclasses.replace(TINY, vocabulary=tokenizer.vocabulary)))
    texts = torch.from_numpy(tokenizer(facts.texts))
    progress = Progress()
    optimiser = make_optimiser(learner, config)
    setup = Setup(learner, learner, optimiser, frames, texts, facts.phases, config, METHODS["bc"])
    fit(setup, progress, lambda _: None, clock=lambda: float(progress.step))
    assert progress.finished
    assert (progress.step, progress.seconds) == (30, 30.0)
    assert len(progress.history) > 1
    assert optimiser.param_groups[0]["lr"] < 0.05 * config.lr


def test_the_learning_rate_warms_up_peaks_and_falls():
    assert learning_rate(0, 0.0, 50) < 0.05
    assert learning_rate(60, 0.0, 50) == 1.0
    assert learning_rate(1000, 1.0, 50) == pytest.approx(0.01)
