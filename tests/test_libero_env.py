"""The LIBERO environment against LIBERO itself."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vlaad_ray.configs import EnvConfig, UserError
from vlaad_ray.envs import libero
from vlaad_ray.envs.rendering import SceneRenderer
from vlaad_ray.types import InitState

ACTIONS = np.concatenate([np.random.default_rng(0).uniform(-1, 1, (8, 6)), np.ones((8, 1))], axis=1)
INIT = InitState("stored", 3)


@pytest.fixture(scope="module")
def env():
    env = libero.LiberoEnv("libero_spatial", 0, EnvConfig())
    yield env
    env.close()


def run(env, init=INIT, seed=0):
    """[steps, nq] joint positions of a fixed motion."""
    env.reset(init, seed)
    states = [env.data.qpos.copy()]
    for action in ACTIONS:
        env.step(action)
        states.append(env.data.qpos.copy())
    return np.stack(states)


@pytest.mark.parametrize(
    ("suite", "task", "base"),
    [
        ("libero_object", 0, (-0.60, 0, 0)),
        ("libero_goal", 0, (-0.66, 0, 0.912)),
        ("libero_10", 0, (-0.51, 0, 0.42)),
        ("libero_10", 3, (-0.66, 0, 0.912)),
        ("libero_10", 5, (-0.75, 0, 0.912)),
    ],
)
def test_positions_are_the_worlds_whose_axes_are_the_robots(suite, task, base):
    """docs/store.md said base frame, which is up to 0.9 m off."""
    env = libero.LiberoEnv(suite, task, EnvConfig())
    env.reset(INIT)
    root = env.data.body(env.problem.robots[0].robot_model.root_body)
    np.testing.assert_allclose(root.xpos, base, atol=1e-6)
    np.testing.assert_allclose(root.xmat.reshape(3, 3), np.eye(3), atol=1e-6)
    hand = env.proprio()[:3]
    np.testing.assert_allclose(hand, env.problem._get_observations()["robot0_eef_pos"], atol=1e-3)
    assert 0.3 < hand[0] - base[0] < 0.7 and 0.1 < hand[2] - base[2] < 0.5, "before the robot, above its base"
    env.close()


@pytest.mark.parametrize(("suite", "task"), [("libero_spatial", 0), ("libero_object", 3)])
def test_exact_mode_gives_liberos_own_pixels_and_proprioception(tmp_path, suite, task):
    """LIBERO's loop runs in a process of its own: its renderer draws into whatever GL context is current."""
    script = textwrap.dedent(f"""
        import numpy as np
        from libero.libero import benchmark
        from libero.libero.envs.env_wrapper import OffScreenRenderEnv
        suite = benchmark.get_benchmark({suite!r})()
        env = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path({task}), camera_heights=128,
                                 camera_widths=128)
        env.seed(0); env.reset()
        seen = env.set_init_state(suite.get_task_init_states({task})[{INIT.index}])
        for _ in range(10):
            seen, *_ = env.step([0, 0, 0, 0, 0, 0, -1])
        rows = [seen]
        for action in np.load({str(tmp_path / "actions.npy")!r}):
            seen, *_ = env.step(action)
            rows.append(seen)
        keys = ["agentview_image", "robot0_eye_in_hand_image", "robot0_eef_pos", "robot0_eef_quat",
                "robot0_gripper_qpos"]
        np.savez({str(tmp_path / "stock.npz")!r}, **{{key: np.stack([row[key] for row in rows]) for key in keys}})
    """)
    np.save(tmp_path / "actions.npy", ACTIONS)
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    stock = np.load(tmp_path / "stock.npz")
    env = libero.LiberoEnv(suite, task, EnvConfig(render="exact"))
    env.reset(INIT)
    for step in range(len(ACTIONS) + 1):
        seen = env.observe(images=True)
        np.testing.assert_array_equal(seen.images["agentview"], stock["agentview_image"][step][::-1])
        np.testing.assert_array_equal(seen.images["wrist"], stock["robot0_eye_in_hand_image"][step][::-1])
        np.testing.assert_array_equal(seen.proprio[:3], stock["robot0_eef_pos"][step].astype(np.float32))
        np.testing.assert_array_equal(seen.proprio[6:], stock["robot0_gripper_qpos"][step].astype(np.float32))
        x, y, z, w = stock["robot0_eef_quat"][step]
        # float32 of angles near pi; robosuite rounds the quaternion to float32 on its way
        np.testing.assert_allclose(seen.proprio[3:6], libero.axis_angle(np.array([w, x, y, z])), atol=2e-6)
        if step < len(ACTIONS):
            env.step(ACTIONS[step])
    env.close()


def test_an_episode_does_not_depend_on_what_ran_before(env):
    """Fixtures, the gripper's integrated command and solver state all survive a soft reset unless cleared."""
    first = run(env)
    run(env, InitState("stored", 7))
    np.testing.assert_array_equal(run(env), first)
    fresh = libero.LiberoEnv("libero_spatial", 0, EnvConfig())
    np.testing.assert_array_equal(run(fresh), first)
    fresh.close()


def test_placements_repeat_by_number_and_differ_from_each_other(env):
    first = run(env, InitState("placement", 0), seed=1)
    other = run(env, InitState("placement", 1), seed=1)
    np.testing.assert_array_equal(run(env, InitState("placement", 0), seed=1), first)
    assert np.abs(first[0] - other[0]).max() > 1e-3
    assert np.abs(first[0] - run(env, InitState("placement", 0), seed=2)[0]).max() > 1e-3


def test_fresh_placements_put_what_belongs_on_a_fixture_there():
    """Also after the first reset, from which on LIBERO's own placements are wrong by where the fixture lies."""
    env = libero.LiberoEnv("libero_spatial", 7, EnvConfig())
    assert env.instruction.startswith("pick up the black bowl on the stove")
    for number in range(3):
        env.reset(InitState("placement", number))
        bowl = env.data.body("akita_black_bowl_1_main").xpos
        burner = env.data.site("flat_stove_1_cook_region").xpos
        assert np.linalg.norm((bowl - burner)[:2]) < 0.05
        assert abs(bowl[2] - burner[2]) < 0.05
    env.close()


def test_single_pass_physics_follows_liberos_own():
    exact = libero.LiberoEnv("libero_spatial", 0, EnvConfig(render="exact"))
    fast = libero.LiberoEnv("libero_spatial", 0, EnvConfig(render="fast"))
    # Solver tolerance is 1e-8; light contacts with the settling objects amplify it to about 1e-5 in 8 steps.
    assert np.abs(run(exact) - run(fast)).max() < 1e-4
    exact.close()
    fast.close()


def test_fast_images_show_what_exact_ones_show(env):
    env.reset(INIT)
    exact, fast = (SceneRenderer(env.model, 128, fast) for fast in (False, True))
    for camera, image in exact.render(env.data).items():
        difference = np.abs(image.astype(int) - fast.render(env.data)[camera].astype(int))
        # Reflections and antialiasing alone make 2.6; a missing object or a hole in a mesh makes more.
        assert difference.mean() < 4
    exact.close()
    fast.close()


def test_nothing_is_rendered_unless_asked():
    env = libero.LiberoEnv("libero_object", 0, EnvConfig())
    env.reset(INIT)
    env.step(libero.NO_OP)
    assert env.observe(images=False).images == {}
    assert env._renderer is None
    env.close()


def test_proprioception_does_not_jump_while_the_hand_points_down(env):
    """An axis-angle made canonical by w >= 0 flips its sign around the hand's usual orientation (angle pi)."""
    env.reset(INIT)
    angles = []
    for sign in (1, -1):
        for _ in range(10):
            env.step(np.array([0, 0, 0, 0.5 * sign, 0.5 * sign, 0, -1]))
            angles.append(env.proprio()[3:6])
    assert np.abs(np.diff(np.stack(angles), axis=0)).max() < 0.2


@pytest.mark.parametrize(
    ("suite", "task", "init", "message"),
    [
        ("libero_objects", 0, 0, "unknown suite 'libero_objects'; choose one of libero_object"),
        ("libero_object", 10, 0, "libero_object has no task 10; choose from 0-9"),
        ("libero_object", 0, 50, "init state 50 of libero_object task 0 does not exist; choose from 0-49"),
    ],
)
def test_what_does_not_exist_is_named(suite, task, init, message):
    with pytest.raises(UserError, match=message):
        libero.LiberoEnv(suite, task, EnvConfig()).reset(InitState("stored", init))
