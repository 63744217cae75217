"""The scripted expert on the real simulator, one episode a skill, within the field's step budgets."""

from __future__ import annotations

import numpy as np
import pytest

from vlaad_ray.configs import EnvConfig, NoiseConfig, UserError
from vlaad_ray.envs.libero import LiberoEnv
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.semantics.phases import PHASES
from vlaad_ray.teachers.scripted.expert import ScriptedTeacher
from vlaad_ray.teachers.scripted.geometry import HeightMap, closing_along, rotation_about, rotation_vector
from vlaad_ray.types import Episode, EpisodeKey, InitState


def rollout(env: LiberoEnv, state: int, noise: NoiseConfig | None = None) -> Episode:
    key = EpisodeKey(env.suite, env.task, InitState("stored", state), "scripted", 0, "test")
    return run_episode(env, ScriptedTeacher(env), EpisodeSpec(key, noise=noise or NoiseConfig()))


@pytest.mark.parametrize(
    ("suite", "task", "skill"),
    [
        ("libero_object", 7, "transporting"),  # a carton on whose gable an opening finger catches
        ("libero_spatial", 4, "transporting"),  # a bowl by its rim, out of a drawer
        ("libero_goal", 0, "operating"),  # a drawer
        ("libero_goal", 7, "operating"),  # a knob
        ("libero_goal", 5, "operating"),  # a plate that is pushed
        ("libero_10", 4, "transporting"),  # two mugs, which a hand that comes in low would tip over
        ("libero_10", 9, "operating"),  # a mug into the microwave, and its door
        ("libero_90", 88, "transporting"),  # a book onto a shelf, through its front, with a level hand
        ("libero_90", 5, "operating"),  # a pudding so close to the open drawer that the hand has no room
    ],
)
def test_each_skill_reaches_its_goal_and_leaves_it_reached(suite: str, task: int, skill: str) -> None:
    """Catches: a skill that fails, is too slow for the budget, or undoes its success when it lets go."""
    env = LiberoEnv(suite, task, EnvConfig())
    episode = rollout(env, 24)
    env.close()
    assert episode.success_ever
    assert episode.success_final
    assert skill in episode.phases
    assert set(episode.phases) <= set(PHASES)
    grippers = episode.actions[:, -1]
    assert set(np.unique(grippers)) <= {-1.0, 1.0}
    changes = np.flatnonzero(np.diff(grippers))
    assert (np.diff(changes) > 3).all(), "a gripper command was revoked within 3 steps"


def test_pushed_off_its_path_it_still_succeeds_and_says_so_when_done() -> None:
    """Catches: a program that replays a plan instead of answering the state, or that never ends."""
    env = LiberoEnv("libero_object", 0, EnvConfig())
    teacher = ScriptedTeacher(env)
    key = EpisodeKey(env.suite, env.task, InitState("stored", 1), "scripted", 0, "test")
    noise = NoiseConfig(sigmas=(0.2,), burst_rate=0.02)
    episode = run_episode(env, teacher, EpisodeSpec(key, noise=noise))
    assert episode.success_ever
    for _ in range(40):
        if teacher.done:
            break
        env.step(teacher.infer(env.observe(images=False)).actions[0])
    assert teacher.done
    rest = teacher.infer(env.observe(images=False))
    assert rest.phase == "completed"
    np.testing.assert_array_equal(rest.actions, [[0, 0, 0, 0, 0, 0, -1]])
    env.close()


def test_unknown_predicate_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a task that the expert can't do failing silently in every episode."""
    env = LiberoEnv("libero_object", 0, EnvConfig())
    monkeypatch.setitem(env.problem.parsed_problem, "goal_state", [["fold", "towel_1"]])
    with pytest.raises(UserError, match=r"'fold'.*libero_object task 0"):
        ScriptedTeacher(env)
    env.close()


def test_same_start_same_actions() -> None:
    """Catches: state that leaks from one episode into the next."""
    env = LiberoEnv("libero_goal", 8, EnvConfig())
    first, _, again = rollout(env, 3), rollout(env, 4), rollout(env, 3)
    env.close()
    np.testing.assert_array_equal(first.actions, again.actions)


def test_yaw_does_not_jump_where_objects_usually_lie() -> None:
    """Catches: nearly equal states that get grasps half a turn apart, which no student can imitate."""
    for heading in (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4):
        yaws = [closing_along(np.array([np.cos(heading + d), np.sin(heading + d)]))[1] for d in (-0.05, 0.05)]
        assert abs(yaws[1] - yaws[0]) < 0.11


def test_rotation_vector_is_the_inverse_of_rotation_about() -> None:
    """Catches: a hand that turns the long way round."""
    axis = np.array([0.6, 0, 0.8])
    for angle in (1e-4, 0.5, 3.0):
        # Quaternions square small angles: 1e-7 is their rounding.
        np.testing.assert_allclose(rotation_vector(rotation_about(axis, angle)), axis * angle, atol=1e-7)


def test_clearance_sees_what_lies_ahead_and_not_what_lies_aside() -> None:
    """Catches: a hand that runs into a wall, or that climbs over things it will not pass."""
    wall = np.array([[0.3, 0.0, 0.5], [0.3, 0.5, 1.5]])
    heights = HeightMap(np.vstack([wall, [[0, 0, 0.0]]]))
    near = heights.clearance(np.array([0.25, 0, 0]), np.array([0.6, 0, 0]), radius=0.05)
    far = heights.clearance(np.array([0.0, 0, 0]), np.array([0.6, 0, 0]), radius=0.05)
    assert near == pytest.approx(0.5)
    assert 0 < far < near
