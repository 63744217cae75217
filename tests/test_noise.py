"""Noise that is injected into a teacher, and the measures that must find it again: by hand, and closed loop."""

import functools
import itertools

import numpy as np
import pytest
from fakes import LineEnv, ScriptedLine, key

from vlaad_ray import store
from vlaad_ray.collect import collect, plan_episodes
from vlaad_ray.configs import (
    AuditConfig,
    CollectConfig,
    EnvConfig,
    EvalConfig,
    NoiseConfig,
    TeacherNoiseConfig,
    UserError,
)
from vlaad_ray.evaluate import stage as evaluate
from vlaad_ray.quality.measure import audit_episode
from vlaad_ray.quality.summary import summarise
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.rollout.noise import ActionNoise, Bursts, TeacherNoise, random_of
from vlaad_ray.runtime.over_episodes import try_episode
from vlaad_ray.semantics import smoothness
from vlaad_ray.teachers.scripted.expert import ScriptedTeacher
from vlaad_ray.types import ActionChunk, LocalPolicy

EPISODES = 50
STRONG = TeacherNoiseConfig(flip_rate=0.1, jitter=0.05, stall_rate=0.1)


def test_noise_is_weaker_while_the_teacher_works_a_fixture_and_equal_elsewhere():
    white = {"sigmas": (0.3,), "burst_rate": 0.2}
    full, weak = (ActionNoise(NoiseConfig(**white, operating_scale=scale), key()) for scale in (1.0, 0.25))
    action = np.zeros(7, np.float32)
    for phase in ("approaching", "operating", None, "operating", "grasping"):
        share = 0.25 if phase == "operating" else 1.0
        np.testing.assert_allclose(weak.apply(action, phase), share * full.apply(action, phase), rtol=1e-6)


class Hand(LineEnv):
    """A hand in space whose fingers follow the gripper command. The goal: something was carried and is let go of."""

    instruction = "pick up the milk and place it in the basket"
    budget = 280

    def reset(self, init, seed=0):
        super().reset(init, seed)
        self.at, self.width = np.array([0.0, 0.0, 0.3]), 0.08

    def step(self, action):
        self.executed.append(action)
        self.at = self.at + 0.011 * action[:3]
        self.width = float(np.clip(self.width - 0.01 * np.sign(action[6]), 0.05, 0.08))

    def observe(self, images):
        observation = super().observe(images)
        proprio = np.array([*self.at, 0, 0, 0, self.width / 2, -self.width / 2], np.float32)
        return type(observation)(observation.instruction, proprio, observation.images)

    def success(self):
        return self.at[1] > 0.2 and self.width > 0.07


class Picker:
    """Down, close, up, aside, open; of odd number it fails to grasp first and opens for five steps, as a real one."""

    needs_images = False

    def __init__(self, number):
        pause = int(np.random.default_rng(number).integers(0, 20))
        legs = [((0, 0, -1), -1, 20 + pause), ((0, 0, 0), 1, 8)]
        if number % 2:
            legs += [((0, 0, 0.5), -1, 5), ((0, 0, -0.5), 1, 5)]
        legs += [((0, 0, 1), 1, 18), ((0, 1, 0), 1, 30 + pause), ((0, 0, -0.5), 1, 10), ((0, 0, 0.5), -1, 300)]
        self._actions = [[*motion, 0, 0, 0, side] for motion, side, steps in legs for _ in range(steps)]

    def reset(self, instruction):
        self.step = 0

    def infer(self, observation):
        self.step += 1
        return ActionChunk(np.array(self._actions[self.step - 1], np.float32)[None])


def run(number, noise):
    spec = EpisodeSpec(key(number, f"{noise.flip_rate}"), teacher_noise=noise)
    return run_episode(Hand(), Picker(number), spec)


def audited(folder, noise):
    """Summary over EPISODES stored episodes, without Ray."""
    paths = [store.write_episode(folder, run(number, noise), {}) for number in range(EPISODES)]
    work = functools.partial(audit_episode, longest=smoothness.LONGEST_FLIP, repair=None)
    records = [try_episode(path, work) for path in paths]
    return summarise(records, AuditConfig(out=folder, data=folder))


@pytest.mark.parametrize(("percent", "longest"), [(0, 2), (1, 2), (3, 2), (10, 2), (10, 3)])
def test_the_audit_finds_the_injected_rate_again(tmp_path, percent, longest):
    """Acceptance: within 0.3 points of what was set. At 0 the teacher's real failed grasps must not count."""
    summary = audited(tmp_path, TeacherNoiseConfig(flip_rate=percent / 100, flip_steps=longest))
    assert 100 * summary.self_revoked == pytest.approx(percent, abs=0.3)
    assert set(map(int, summary.bursts)) <= set(range(1, longest + 1))
    usual = 3 if percent == 0 else summary.reversals_per_240_if_repaired * summary.frames / 240 / EPISODES
    assert usual == pytest.approx(4, abs=1.05)  # two changes an episode, four of one that grasps twice


def test_teacher_noise_is_recorded_and_executed_and_an_episode_ends_when_it_would_have():
    """The opposite of DART. A flip that put off the end would make all last steps free of flips."""
    policy = ScriptedLine([[1.0, 0, 0, 0, 0, 0, 1]] * 5, [[0.0, 0, 0, 0, 0, 0, -1]])
    noise = TeacherNoiseConfig(flip_rate=0.2)
    episodes = [run_episode(LineEnv(), policy, EpisodeSpec(key(i), teacher_noise=noise)) for i in range(20)]
    clean = run_episode(LineEnv(), policy, EpisodeSpec(key()))
    assert {len(episode) for episode in episodes} == {len(clean)}
    for episode in episodes:
        np.testing.assert_array_equal(episode.actions, episode.executed)
        np.testing.assert_array_equal(episode.actions[:, :6], clean.actions[:, :6])
    flipped = np.stack([episode.actions[:, 6] != clean.actions[:, 6] for episode in episodes])
    assert flipped[:, -6:].any(axis=1).sum() > 10 and not flipped[:, :4].any()


def test_teacher_noise_depends_on_the_episodes_name_alone():
    """On any actor, after any other episode, and whatever DART draws."""
    spec = EpisodeSpec(key(4), teacher_noise=STRONG)
    env = Hand()
    first = run_episode(env, Picker(4), spec)
    run_episode(env, Picker(5), EpisodeSpec(key(5), teacher_noise=STRONG))
    again = run_episode(env, Picker(4), spec)
    np.testing.assert_array_equal(again.actions, first.actions)
    dart = run_episode(Hand(), Picker(4), EpisodeSpec(key(4), noise=NoiseConfig(sigmas=(0.2,)), teacher_noise=STRONG))
    np.testing.assert_array_equal(dart.actions[:, 6], first.actions[:, 6])
    other = run_episode(Hand(), Picker(4), EpisodeSpec(key(4, task=1), teacher_noise=STRONG))
    assert not np.array_equal(other.actions[:, 6], first.actions[:, 6])


def test_every_burst_is_taken_back_when_the_teacher_changes_its_mind_all_the_time():
    """A flip beside a real change would be an early change: unseen by the audit, and short of the rate."""
    meant = np.repeat([-1.0, 1.0] * 250, 14)
    noise = TeacherNoise(TeacherNoiseConfig(flip_rate=0.1), key())
    asked = np.array([noise.apply(np.array([0, 0, 0, 0, 0, 0, side], np.float32))[6] for side in meant])
    assert 100 * smoothness.self_revoked(asked).mean() == pytest.approx(10, abs=0.3)
    assert (asked != meant).mean() < 0.12


def test_stalls_stop_the_hand_and_jitter_shakes_it_but_neither_moves_the_gripper():
    noise = TeacherNoise(TeacherNoiseConfig(jitter=0.1, stall_rate=0.2, stall_steps=4), key())
    meant = np.array([0.5, -0.5, 0, 0, 0, 0, 1], np.float32)
    asked = np.stack([noise.apply(meant) for _ in range(2000)])
    still = smoothness.stalled(asked[:, :6])
    assert still.mean() == pytest.approx(0.2, abs=0.01)
    assert (asked[still, :6] == 0).all()
    assert (asked[:, 6] == 1).all()
    spread = (asked - meant)[~still].std(axis=0)
    np.testing.assert_allclose(spread, [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0], rtol=0.1)  # n = 1600: 1.8 % a sigma


@pytest.mark.parametrize(("rate", "longest"), [(0.01, 1), (0.1, 2), (0.1, 5)])
def test_bursts_cover_their_share_of_short_runs_too(rate, longest):
    """Most episodes at 1 % have one burst or none: a schedule that starts at zero would be short by half a burst."""
    covered = 0
    for number in range(3000):
        bursts = Bursts(rate, longest, random_of(str(number)))
        for _ in range(40):
            bursts.tick()
        covered += sum(bursts.due)
    assert covered / (3000 * 40) == pytest.approx(rate, rel=0.06)  # three standard errors


def test_names_of_episodes_without_teacher_noise_stay_and_those_with_it_differ(tmp_path):
    """Otherwise every dataset that exists would be collected once more, or a noisy one be taken for clean."""
    dart = NoiseConfig(sigmas=(0.0, 0.1, 0.2, 0.3), burst_rate=0.02)
    settings = {"out": tmp_path, "tasks": "0", "init_states": "0", "image_every": 2, "noise": dart, "env": EnvConfig()}
    noisy = TeacherNoiseConfig(flip_rate=0.03)
    scripted = LocalPolicy("scripted", ScriptedTeacher)
    (before,), (after,) = (
        plan_episodes(CollectConfig(**settings, teacher_noise=noise), scripted)
        for noise in (TeacherNoiseConfig(), noisy)
    )
    assert before.key.config_hash == "86fad71e"  # of CONTENT_VERSION 2 without teacher noise
    assert after.key.config_hash != before.key.config_hash
    assert after.teacher_noise == noisy
    (plain,), (tried,) = (
        evaluate.plan_episodes(
            EvalConfig("scripted", tmp_path, tasks="0", init_states="20", teacher_noise=noise), scripted
        )
        for noise in (TeacherNoiseConfig(), noisy)
    )
    assert tried.teacher_noise == noisy
    assert tried.key.config_hash != plain.key.config_hash


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (TeacherNoiseConfig(flip_rate=0.5), "flip-rate 0.5 is not a fraction from 0 to 0.27"),
        (TeacherNoiseConfig(flip_rate=-0.1), "--teacher-noise.flip-rate must be 0 or more, not -0.1"),
        (TeacherNoiseConfig(flip_steps=0), "--teacher-noise.flip-steps must be 1 or more"),
        (TeacherNoiseConfig(stall_rate=1.0), "--teacher-noise.stall-rate must be 0 to below 1"),
        (TeacherNoiseConfig(jitter=-1.0), "--teacher-noise.jitter must be 0 or more"),
    ],
)
def test_noise_that_cannot_be_made_is_refused(tmp_path, noise, message):
    with pytest.raises(UserError, match=message):
        collect(CollectConfig(tmp_path / "out", teacher_noise=noise))


@pytest.mark.parametrize(
    ("commands", "revoked"),
    [
        ("", ""),
        ("o", "."),
        ("oooooooo", "........"),
        ("ooooocccccooooo", "..............."),  # a real closing, also a short one:
        ("oooooccccooooo", ".............."),
        ("ooooocccooooo", ".....xxx....."),
        ("oooooccoccccccc", ".......x......."),  # beside a real change: the lesser side was not meant
        ("ooooococoooo", ".....x.x...."),  # two flips, not three: open in between was meant
        ("oococococooo", "..x.x.x.x..."),
        ("cooooooooooc", "............"),  # not seen to begin, nor to be taken back
        ("ooooooooccc", "..........."),
        ("00cccccccccccc", ".............."),
        ("oooo00cc0ooooo", "......xxx....."),  # nothing said: the command before it holds
    ],
)
def test_self_revoked_by_hand(commands, revoked):
    values = np.array([{"o": -1.0, "c": 1.0, "0": 0.0}[letter] for letter in commands])
    assert "".join(".x"[step] for step in smoothness.self_revoked(values).astype(int)) == revoked


def test_what_was_meant_is_the_optimum_of_its_definition():
    """All sequences of 8 steps against brute force over all that could have been meant."""
    sequences = np.array(list(itertools.product([False, True], repeat=8)))
    changes = (sequences[:, 1:] != sequences[:, :-1]).sum(axis=1)
    for given in sequences:
        costs = (sequences != given).sum(axis=1) + 1.75 * changes
        found = smoothness._nearest_steady(given, 1.75)
        assert costs[(sequences == found).all(axis=1)].item() == costs.min()


def test_meant_gripper_keeps_magnitudes_and_has_no_revoked_step():
    commands = np.array([-0.4] * 6 + [0.9] + [-0.4] * 6 + [0.8] * 6, np.float32)
    meant = smoothness.meant_gripper(commands)
    np.testing.assert_array_equal(np.abs(meant), np.abs(commands))
    assert not smoothness.self_revoked(meant).any()
    assert (smoothness.gripper_flips(commands), smoothness.gripper_flips(meant)) == (3, 1)
    assert smoothness.reversals(commands).sum() == 3


def test_jerk_of_known_motions():
    """Off by a power of the control rate, or differences misplaced by a step, would go unseen in any ratio."""
    time = np.arange(60) / 20
    proprio = np.zeros((60, 8))
    proprio[:, 0] = 2.0 * time**3 / 6
    np.testing.assert_allclose(smoothness.moved_jerk(proprio[:, :3], 20)[2:-1], 2.0, rtol=1e-6)
    actions = np.zeros((60, 7))
    actions[30, 1] = 1
    assert smoothness.asked_jerk(actions[:, :3])[28:33].tolist() == [0, 1, 2, 1, 0]
    white = np.random.default_rng(0).normal(0, 0.1, (20000, 7))
    assert np.sqrt(np.nanmean(smoothness.asked_jerk(white[:, :3]) ** 2)) == pytest.approx(0.1 * 18**0.5, rel=0.02)
    assert (
        np.isnan(smoothness.asked_jerk(actions[:2])).all()
        and np.isnan(smoothness.moved_jerk(proprio[:3, :3], 20)).all()
    )


def test_a_line_policy_without_noise_is_left_alone():
    """The default must not even round."""
    action = [0.1234567, 0, 0, 0, 0, 0, -1]
    episode = run_episode(LineEnv(), ScriptedLine([action]), EpisodeSpec(key()))
    assert (episode.actions == np.array(action, np.float32)).all()
