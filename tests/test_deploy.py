"""A deployed student: the same pixels and actions as in training, and nothing bad in or out."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.configs import ActuationConfig, UserError
from vlaad_ray.deploy import actuation, loading
from vlaad_ray.deploy.actuation import Actuation, GripperCommand, Nudge
from vlaad_ray.deploy.decoding import decode
from vlaad_ray.deploy.policy import MAX_TEXTS, StudentPolicy
from vlaad_ray.deploy.shaping import Shaped, shape
from vlaad_ray.models.student import bins, checkpoint
from vlaad_ray.models.student.preprocess import bins_to_actions, translation_spread
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.train.data import episode_frames
from vlaad_ray.train.survey import survey
from vlaad_ray.types import ActionChunk, Observation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

AS_SAID = ActuationConfig(gripper_dwell=0, gripper_memory=0, nudge_after=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with random weights that sees 48 pixels of the cameras' 64."""
    path = tmp_path_factory.mktemp("student")
    tokenizer = train_tokenizer(synthetic.INSTRUCTIONS, 24)
    torch.manual_seed(0)
    student = SmallStudent(
        SmallConfig(image_size=48, width=8, hidden=32, text_length=24, vocabulary=tokenizer.vocabulary)
    )
    torch.nn.init.normal_(student.head[-1].weight, std=1.0)
    checkpoint.save_pretrained(path, student, tokenizer, {"render": "fast"})
    return path


def observation(step: int = 0, **changes: object) -> Observation:
    episode = synthetic.episode(0, steps=8, size=64)
    images = {camera: frames[step] for camera, frames in episode.images.items()}
    return dataclasses.replace(Observation(episode.instruction, episode.proprio[step], images), **changes)


def test_deployment_needs_neither_ray_nor_a_simulator_nor_the_store():
    heavy = ("ray", "libero", "mujoco", "robosuite", "pyarrow", "PIL", "transformers")
    code = f"import sys, vlaad_ray.deploy.policy; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deployed_student_answers_as_the_network_did_in_training(directory, tmp_path):
    """Frames take the way of training (store, episode_frames), observations that of deployment: same actions."""
    data, _ = synthetic.write_dataset(tmp_path, 1, steps=8, size=64)
    (source,) = (facts := survey(data, None, 0.0)).sources
    pretrained = checkpoint.from_pretrained(directory)
    texts = {text: index for index, text in enumerate(facts.texts)}
    frames = episode_frames(source, texts, {"unknown": 0}, pretrained.student.config)
    with torch.no_grad():
        tokens = torch.from_numpy(pretrained.tokenizer(facts.texts))[frames["instruction"]]
        logits = pretrained.student(torch.from_numpy(frames["images"]), torch.from_numpy(frames["proprio"]), tokens)
    expected = bins_to_actions(logits).numpy()

    stored = store.read_episode(source.path)
    policy = StudentPolicy.from_pretrained(directory)
    policy.reset(stored.instruction)
    for step in range(len(stored)):
        images = {camera: seen[step] for camera, seen in stored.images.items()}
        chunk = policy.infer(Observation(stored.instruction, stored.proprio[step], images))
        # A batch of 8 and a batch of 1 add floats in another order.
        np.testing.assert_allclose(chunk.actions, expected[step], atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_actions_are_finite_in_range_repeatable_and_the_gripper_is_all_or_nothing(directory, dtype):
    policy, again = (StudentPolicy.from_pretrained(directory, execute=2, dtype=dtype) for _ in range(2))
    for step in range(8):
        chunk = policy.infer(observation(step)).actions
        assert chunk.shape == (2, 7)
        assert chunk.dtype == np.float32
        assert np.abs(chunk).max() <= 1
        assert set(np.abs(chunk[:, 6])) == {1.0}
        assert np.array_equal(chunk, again.infer(observation(step)).actions)


def test_a_new_instruction_is_not_answered_with_the_old_ones_encoding(directory):
    policy = StudentPolicy.from_pretrained(directory)
    policy.reset(synthetic.INSTRUCTIONS[0])
    first = policy.infer(observation())
    policy.infer(observation(instruction=synthetic.INSTRUCTIONS[1]))
    assert np.array_equal(policy.infer(observation()).actions, first.actions)
    other = StudentPolicy.from_pretrained(directory)
    other.reset(synthetic.INSTRUCTIONS[1])
    expected = other.infer(observation(instruction=synthetic.INSTRUCTIONS[1])).actions
    assert np.array_equal(policy.infer(observation(instruction=synthetic.INSTRUCTIONS[1])).actions, expected)


def test_a_batch_of_many_instructions_is_answered_as_one_by_one(directory):
    """Also when there are more of them than encodings are kept."""
    policy = StudentPolicy.from_pretrained(directory)
    texts = [*synthetic.INSTRUCTIONS, *(f"task {number}" for number in range(MAX_TEXTS))]
    batch = [observation(step % 8, instruction=text) for step, text in enumerate(texts)]
    for chunk, each in zip(policy.infer_batch(batch), batch, strict=True):
        # Batches of another size add floats in another order.
        np.testing.assert_allclose(chunk.actions, policy.infer(each).actions, atol=1e-5)
    assert len(policy._texts) == MAX_TEXTS


class Says:
    """Answers with the gripper commands that it was made with, two at a time."""

    needs_images = False

    def __init__(self, *commands):
        self.commands = commands

    def reset(self, instruction):
        self.answers = iter(np.array(self.commands, np.float32).reshape(-1, 2))

    def infer(self, observation):
        return ActionChunk(np.array([[0.5] * 6 + [command] for command in next(self.answers)], np.float32))


def test_a_gripper_command_stands_for_a_while_once_it_has_changed():
    """Open, close, open, close …: the fingers must get the time to close; and a new episode starts afresh."""
    said = [-1, 1, -1, 1, -1, 1, -1, 1, 1, 1, 1, -1]
    policy = Shaped(Says(*said), shape(None, None, ActuationConfig(3, 0, 0)))
    for _ in range(2):
        policy.reset("")
        done = np.concatenate([policy.infer(observation()).actions for _ in range(len(said) // 2)])
        assert done[:, 6].tolist() == [-1, -1, -1, 1, 1, 1, -1, -1, -1, 1, 1, 1]
        assert (done[:, :6] == 0.5).all()
    unchanged = Shaped(Says(*said), shape(None, None, AS_SAID))
    unchanged.reset("")
    assert np.concatenate([unchanged.infer(observation()).actions for _ in range(6)])[:, 6].tolist() == said


def commands(gripper, chances):
    """What the gripper is told, one step at a time, by a student that finds closing so likely."""
    said = (ActionChunk(np.array([[0.5] * 6 + [np.sign(p - 0.5)]], np.float32), closing=np.array([p])) for p in chances)
    return [float(gripper.apply(chunk)[0, 6]) for chunk in said]


def test_a_student_that_is_not_sure_for_ever_closes_in_the_end():
    """At rest at the object it finds closing 0.2 likely, step after step: 0.8 ** 10 of teachers would still wait."""
    at_rest = [0.01] * 10 + [0.2] * 19
    assert set(commands(GripperCommand(dwell=10, memory=0), at_rest)) == {-1.0}
    assert commands(GripperCommand(dwell=10, memory=10**6), at_rest) == [-1.0] * 19 + [1.0] * 10
    assert 1.0 in commands(GripperCommand(dwell=10, memory=10), [0.25] * 30), "also when it forgets"


def test_rare_flips_of_the_teacher_do_not_add_up():
    """What it learnt of a teacher that flips now and then is a small chance everywhere: as good as forgotten."""
    assert set(commands(GripperCommand(dwell=10, memory=10), [0.1] * 300)) == {-1.0}
    assert set(commands(GripperCommand(dwell=10, memory=10), [0.9] * 300)) == {1.0}


def test_no_doubts_add_up_while_a_command_stands_and_an_episode_begins_without_any():
    gripper = GripperCommand(dwell=3, memory=10**6)
    for _ in range(2):
        assert commands(gripper, [0.0, 0.9, 0.9, 0.9, 0.6, 0.6]) == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
        assert commands(gripper, [0.6] * 5) == [1.0, 1.0, 1.0, 1.0, -1.0], "0.6 ** 4 is more than 1 / 8"
        gripper.reset()


def test_a_likelihood_of_one_is_no_error():
    assert commands(GripperCommand(dwell=0, memory=10), [0.0, 1.0, 0.0]) == [-1.0, 1.0, -1.0]


@pytest.mark.parametrize("ensembled", [False, True])
def test_a_real_student_at_rest_is_nudged(directory, ensembled, monkeypatch):
    """Random weights are unsure of everything, closing included."""
    monkeypatch.setattr(actuation, "ABOUT_TO_CLOSE", 1.0)
    policy = StudentPolicy.from_pretrained(directory, execute=2)
    seen = next(seen for seen in map(observation, range(8)) if (policy.infer(seen).actions[:, 6] < 0).all())
    says = policy.infer(seen).actions
    actuation_config = ActuationConfig(gripper_dwell=0, gripper_memory=0, nudge_after=6)
    shaped = Shaped(policy, shape(2, 0.0 if ensembled else None, actuation_config))
    for _ in range(2):
        shaped.reset(seen.instruction)
        off = [np.abs(shaped.infer(seen).actions - says) for _ in range(4)]
        np.testing.assert_allclose(off[:3], 0, atol=1e-6)
        assert off[3][:, :3].min() > 1e-4
        np.testing.assert_allclose(off[3][:, 3:], 0, atol=1e-6)


def told(nudge, hands, spread=0.3, fingers=None, steps=2):
    """[steps, 3]: where a student that sees its hand there, and is so unsure of going nowhere, is sent."""
    fingers = [0.0] * len(hands) if fingers is None else fingers
    proprio = np.array([[x, 0, 0, 0, 0, 0, width, -width] for x, width in zip(hands, fingers, strict=True)], np.float32)
    chunk = ActionChunk(np.zeros((steps, 7), np.float32), spread=np.full((steps, 3), spread, np.float32))
    return np.concatenate([nudge.apply(seen, chunk) for seen in proprio])


def test_an_arm_at_rest_is_nudged_for_a_while_and_every_episode_alike():
    nudge = Nudge(after=6)
    first = told(nudge, [0.5] * 8)
    assert (first[:6] == 0).all()
    assert (first[6:12] != 0).all()
    assert (first[12:] == 0).all(), "and then it has its time again"
    assert (np.abs(first) <= 1).all()
    assert len(np.unique(first[6:12], axis=0)) == 3, "one push for each answer"
    nudge.reset()
    np.testing.assert_array_equal(told(nudge, [0.5] * 8), first)
    nudge.reset()
    long = told(nudge, [0.5] * 4, steps=5)
    assert (long != 0).all(axis=1).nonzero()[0].tolist() == [10, 11, 12, 13, 14, 15], "also where answers are longer"


def test_what_moves_is_not_nudged():
    assert (told(Nudge(after=6), np.arange(30) * 0.011) == 0).all(), "a hand"
    assert (told(Nudge(after=6), [0.5] * 30, fingers=np.arange(30) % 2 * 0.04) == 0).all(), "or fingers"
    assert (told(Nudge(after=6), np.arange(30) * 0.001) != 0).any(), "a millimetre in a tenth of a second is rest"


def test_a_robot_may_refill_one_array_and_what_is_not_a_number_is_no_rest():
    chunk = ActionChunk(np.zeros((2, 7), np.float32), spread=np.full((2, 3), 0.3, np.float32))
    nudge, proprio = Nudge(after=6), np.zeros(8, np.float32)
    for step in range(30):
        proprio[0] = 0.011 * step
        assert (nudge.apply(proprio, chunk) == 0).all()
    proprio[0] = np.nan
    assert all((nudge.apply(proprio, chunk) == 0).all() for _ in range(30))


def test_a_student_that_is_sure_or_does_not_tell_or_must_not_be_nudged_is_not():
    assert np.abs(told(Nudge(after=6), [0.5] * 30, spread=1e-6)).max() < 1e-4
    assert (told(Nudge(after=0), [0.5] * 30) == 0).all()
    untold = ActionChunk(np.zeros((2, 7), np.float32))
    nudge = Nudge(after=6)
    assert all((nudge.apply(np.zeros(8), untold) == 0).all() for _ in range(30))


def test_a_hand_that_holds_a_thing_is_not_nudged_and_rests_anew_once_it_has_let_go():
    told = Actuation(ActuationConfig(gripper_dwell=0, gripper_memory=0, nudge_after=6))

    def nudged(gripper, answers, closing=0.05):
        actions = np.array([[0] * 6 + [gripper]] * 2, np.float32)
        chunk = ActionChunk(actions, closing=np.full(2, closing), spread=np.full((2, 3), 0.3, np.float32))
        seen = Observation("", np.zeros(8, np.float32))
        return [bool(told.apply(seen, chunk).actions[:, :3].any()) for _ in range(answers)]

    assert nudged(-1, 4) == [False, False, False, True]
    assert nudged(-1, 9, closing=0.2) == [False] * 9, "one that may be about to grasp"
    assert nudged(1, 9) == [False] * 9
    assert nudged(-1, 7) == [False, False, False, True, True, True, False]


def test_the_spread_is_that_of_the_distribution():
    """Two humps at either side have a mean of nothing and a spread of what they are apart."""
    logits = torch.full((1, 1, 7, 256), -1e9)
    logits[0, 0, :, [64, 191]] = 0.0
    np.testing.assert_allclose(bins_to_actions(logits)[0, 0, :3], 0, atol=1e-6)
    np.testing.assert_allclose(translation_spread(logits)[0, 0], [127 / 256] * 3, rtol=1e-5)


class Overlapping:
    """Says in its n-th chunk of three that everything is n, and opens or closes as told."""

    needs_images = False

    def __init__(self, *grippers):
        self.grippers = grippers

    def reset(self, instruction):
        self.asked = 0

    def infer(self, observation):
        actions = np.full((3, 7), self.asked, np.float32)
        actions[:, 6] = self.grippers[self.asked]
        self.asked += 1
        return ActionChunk(actions)


def test_overlapping_chunks_are_averaged_with_acts_weights_the_oldest_first():
    """Counted from the newest, they would favour what ACT plays down; a mean gripper command would be neither."""
    policy = Shaped(Overlapping(-1, -1, 1, 1), shape(1, 0.1, AS_SAID))
    for _ in range(2):  # a new episode starts afresh
        policy.reset("")
        done = [policy.infer(observation()).actions for _ in range(4)]
        assert [chunk.shape for chunk in done] == [(1, 7)] * 4
        weights = np.exp([0, -0.1, -0.2])
        expected = [0, weights[1] / weights[:2].sum(), *(np.array([[0, 1, 2], [1, 2, 3]]) @ weights / weights.sum())]
        np.testing.assert_allclose([chunk[0, 0] for chunk in done], expected, rtol=1e-6)
        assert [chunk[0, 6] for chunk in done] == [-1, -1, -1, 1]


def test_an_ensemble_that_hands_out_two_actions_lines_chunks_up_by_step():
    policy = Shaped(Overlapping(1, -1, -1), shape(2, 0.0, AS_SAID))
    policy.reset("")
    done = np.concatenate([policy.infer(observation()).actions for _ in range(3)])
    assert done[:, 0].tolist() == [0, 0, 0.5, 1, 1.5, 2]
    assert done[:, 6].tolist() == [1, 1, -1, -1, -1, -1]  # the tie at step 2 goes to the newest
    with pytest.raises(UserError, match="at least 0"):
        shape(1, -0.1, AS_SAID)


class Recording:
    """A backend that notes what it is given and answers with one and the same logits."""

    name = "recording"

    def __init__(self, logits):
        self.logits_given, self.seen, self.texts = np.asarray(logits, np.float32), [], 0

    def encode_text(self, tokens):
        self.texts += 1
        return tokens[:, :4].astype(np.float32)

    def output(self, images, proprio, text):
        self.seen.append((images, proprio))
        return np.broadcast_to(self.logits_given, (len(images), 5, 7, 16)).copy()

    def decode(self, output):
        return decode(output, functools.partial(bins.decode, gripper=6))


def recorded(directory, logits) -> tuple[StudentPolicy, Recording]:
    student = loading.load(directory)
    backend = Recording(logits)
    return StudentPolicy(dataclasses.replace(student, backend=backend)), backend


def test_the_network_sees_the_very_pixels_of_training(directory, tmp_path):
    """A resize of another kind at deployment costs success without any error."""
    data, _ = synthetic.write_dataset(tmp_path, 1, steps=4, size=64)
    (source,) = (facts := survey(data, None, 0.0)).sources
    config = checkpoint.from_pretrained(directory).student.config
    frames = episode_frames(source, {text: 0 for text in facts.texts}, {"unknown": 0}, config)
    policy, backend = recorded(directory, np.zeros(16))
    stored = store.read_episode(source.path)
    for step in range(len(stored)):
        images = {camera: seen[step] for camera, seen in stored.images.items()}
        policy.infer(Observation(stored.instruction, stored.proprio[step], images))
        assert np.array_equal(backend.seen[-1][0][0], frames["images"][step])
        assert np.array_equal(backend.seen[-1][1][0], frames["proprio"][step])


def test_a_text_is_encoded_once_an_episode(directory):
    policy, backend = recorded(directory, np.zeros(16))
    policy.reset(synthetic.INSTRUCTIONS[0])
    for _ in range(3):
        policy.infer_batch([observation(), observation(instruction=synthetic.INSTRUCTIONS[1])])
    assert backend.texts == 2


@pytest.mark.parametrize("peak", [0, 7, 15])
@pytest.mark.parametrize("height", [1e-3, 30.0, 1e30])
def test_no_logits_take_an_action_out_of_range(directory, peak, height):
    policy, _ = recorded(directory, height * np.eye(16)[peak])
    actions = policy.infer(observation()).actions
    assert np.isfinite(actions).all()
    assert np.abs(actions).max() <= 1


def test_broken_logits_of_the_gripper_alone_are_noticed(directory):
    """A comparison with NaN is false: the gripper would open, and everything else look healthy."""
    logits = np.zeros((5, 7, 16))
    logits[:, 6] = np.nan
    policy, _ = recorded(directory, logits)
    with pytest.raises(FloatingPointError, match="not finite"):
        policy.infer(observation())


GOOD = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "camera 'agentview' is missing"),
        ({"images": {"agentview": GOOD}}, "camera 'wrist' is missing"),
        ({"images": {"agentview": GOOD, "wrist": GOOD.astype(np.float32)}}, "uint8"),
        ({"images": {"agentview": GOOD, "wrist": GOOD[..., :1]}}, r"\[64, 64, 1\]"),
        ({"images": {"agentview": GOOD, "wrist": GOOD[:0]}}, r"\[0, 64, 3\]"),
        ({"proprio": np.full(8, np.nan)}, "finite"),
        ({"proprio": np.zeros(7)}, r"\[7\]"),
        ({"instruction": "  "}, "instruction is empty"),
    ],
)
def test_a_bad_observation_is_refused_by_name(directory, changes, message):
    with pytest.raises(ValueError, match=message):
        StudentPolicy.from_pretrained(directory).infer(observation(**changes))


def test_broken_weights_raise_instead_of_moving_the_robot(directory, tmp_path):
    pretrained = checkpoint.from_pretrained(directory)
    with torch.no_grad():
        pretrained.student.head[0].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        StudentPolicy(loading.in_torch(pretrained)).infer(observation())


def test_more_actions_than_the_chunk_holds_cannot_be_executed(directory):
    with pytest.raises(UserError, match="choose 1 to 5"):
        StudentPolicy.from_pretrained(directory, execute=6)
