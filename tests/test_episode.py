"""The episode loop, on a simulator small enough to work out by hand."""

import numpy as np
import pytest
from fakes import LineEnv, ScriptedLine, key

from vlaad_ray.configs import NoiseConfig
from vlaad_ray.rollout.episode import OPEN_STEPS, RELEASE_STEPS, EpisodeSpec, run_episode
from vlaad_ray.rollout.noise import ActionNoise

CLOSED_FORWARD = [1.0, 0, 0, 0, 0, 0, 1]
CLOSED_STILL = [0.0, 0, 0, 0, 0, 0, 1]
OPEN_STILL = [0.0, 0, 0, 0, 0, 0, -1]
ALL_NOISE = NoiseConfig(sigmas=(0.3,), burst_rate=0.5)


def test_success_step_counts_actions_and_the_policy_may_let_go_afterwards():
    policy = ScriptedLine([CLOSED_FORWARD] * 5, [OPEN_STILL])
    episode = run_episode(LineEnv(), policy, EpisodeSpec(key()))
    assert episode.success_step == 5
    assert episode.success_final
    assert len(episode) == 5 + OPEN_STEPS  # ends once the gripper has been open long enough


def test_a_goal_that_is_lost_on_release_counts_as_ever_but_not_as_final():
    policy = ScriptedLine([CLOSED_FORWARD] * 5, [OPEN_STILL])
    episode = run_episode(LineEnv(drops=True), policy, EpisodeSpec(key()))
    assert episode.success_ever
    assert not episode.success_final


def test_a_policy_that_never_lets_go_is_made_to_and_judged_after():
    env = LineEnv(drops=True)
    episode = run_episode(env, ScriptedLine([CLOSED_FORWARD] * 5, [CLOSED_STILL]), EpisodeSpec(key()))
    assert len(episode) == 5 + RELEASE_STEPS
    assert len(env.executed) == len(episode) + OPEN_STEPS  # our own opening is not recorded as the policy's doing
    assert not episode.success_final


def test_reaching_the_goal_after_the_budget_is_a_failure():
    episode = run_episode(LineEnv(), ScriptedLine([[0.1, 0, 0, 0, 0, 0, 1]]), EpisodeSpec(key(), budget=49))
    assert len(episode) == 49
    assert not episode.success_ever
    assert not episode.success_final


def test_chunks_are_used_up_before_the_policy_is_asked_again():
    policy = ScriptedLine([OPEN_STILL] * 4)
    run_episode(LineEnv(), policy, EpisodeSpec(key(), budget=9))
    assert policy.asked == 3


def test_rendering_happens_only_for_a_policy_that_asks_or_a_recorder():
    env = LineEnv()
    run_episode(env, ScriptedLine([OPEN_STILL]), EpisodeSpec(key()))
    assert env.rendered == 0
    run_episode(env, ScriptedLine([OPEN_STILL] * 5, needs_images=True), EpisodeSpec(key()))
    assert env.rendered == 4  # 20 steps, asked every 5
    env.rendered = 0
    episode = run_episode(env, ScriptedLine([OPEN_STILL]), EpisodeSpec(key(), image_every=3))
    recorded = [step for step, image in enumerate(episode.images["wrist"]) if image is not None]
    assert recorded == [0, 3, 6, 9, 12, 15, 18]
    assert env.rendered == len(recorded)


def test_noise_disturbs_what_is_executed_and_leaves_the_target_and_the_gripper_clean():
    env = LineEnv()
    episode = run_episode(env, ScriptedLine([CLOSED_FORWARD]), EpisodeSpec(key(), noise=ALL_NOISE))
    assert (episode.actions == np.array(CLOSED_FORWARD, np.float32)).all()
    assert not np.allclose(episode.executed, episode.actions)
    np.testing.assert_array_equal(episode.executed[:, 6], episode.actions[:, 6])
    np.testing.assert_array_equal(np.stack(env.executed[: len(episode)]), episode.executed)
    assert np.abs(episode.executed).max() <= 1


def test_noise_depends_on_the_episode_and_not_on_what_ran_before():
    action = np.zeros(7, np.float32)
    first, again, other = (ActionNoise(ALL_NOISE, k) for k in (key(1), key(1), key(2)))
    other.apply(action)
    np.testing.assert_array_equal(
        [first.apply(action) for _ in range(20)],
        [again.apply(action) for _ in range(20)],
    )
    assert not np.array_equal(first.apply(action), other.apply(action))


@pytest.mark.parametrize("bad", [[np.nan] * 7, [0.0] * 6])
def test_an_unusable_action_stops_the_run_instead_of_counting_as_a_failure(bad):
    with pytest.raises(ValueError, match="unusable action"):
        run_episode(LineEnv(), ScriptedLine([bad]), EpisodeSpec(key()))
