"""--stock: LIBERO's own environment, and not something that looks like it."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vlaad_ray.configs import EnvConfig, EvalConfig, FleetConfig, UserError
from vlaad_ray.envs import find_suite
from vlaad_ray.envs.libero_suites import images
from vlaad_ray.evaluate import stage as evaluate
from vlaad_ray.main import parse
from vlaad_ray.rollout.fleet import check_images
from vlaad_ray.types import LocalPolicy, Trained

ACTIONS = np.concatenate([np.random.default_rng(0).uniform(-1, 1, (6, 6)), np.ones((6, 1))], axis=1)
SIZE = 48

PLAIN = """
    import math
    import numpy as np
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv

    def axis_angle(quat):  # of openpi's examples/libero/main.py
        if quat[3] > 1.0:
            quat[3] = 1.0
        elif quat[3] < -1.0:
            quat[3] = -1.0
        den = np.sqrt(1.0 - quat[3] * quat[3])
        if math.isclose(den, 0.0):
            return np.zeros(3)
        return (quat[:3] * 2.0 * math.acos(quat[3])) / den

    suite = benchmark.get_benchmark("libero_goal")()
    env = OffScreenRenderEnv(
        bddl_file_name=suite.get_task_bddl_file_path(7), camera_heights={size}, camera_widths={size}
    )
    env.seed(0)
    env.reset()
    seen = env.set_init_state(suite.get_task_init_states(7)[3])
    for _ in range(10):
        seen, *_ = env.step([0, 0, 0, 0, 0, 0, -1])
    rows, done = [seen], False
    for action in np.load({actions!r}):
        seen, _, done, _ = env.step(action)
        rows.append(seen)
    proprio = [
        np.concatenate((row["robot0_eef_pos"], axis_angle(row["robot0_eef_quat"]), row["robot0_gripper_qpos"]))
        for row in rows
    ]
    agentview = [row["agentview_image"][::-1] for row in rows]
    wrist = [row["robot0_eye_in_hand_image"][::-1] for row in rows]
    np.savez({out!r}, proprio=proprio, agentview=agentview, wrist=wrist, done=done)
"""
OURS = """
    import numpy as np
    from libero.libero.envs import OffScreenRenderEnv
    from vlaad_ray.configs import EnvConfig
    from vlaad_ray.envs import find_suite
    from vlaad_ray.types import InitState

    env = find_suite("libero_goal").make(7, EnvConfig(render="stock", image_size={size}))
    assert type(env._control) is OffScreenRenderEnv
    env.reset(InitState("stored", 5))  # an episode before it must not matter
    env.step(np.ones(7))
    env.reset(InitState("stored", 3))
    rows = [env.observe(images=True)]
    for action in np.load({actions!r}):
        env.step(action)
        rows.append(env.observe(images=True))
    np.savez(
        {out!r},
        proprio=[row.proprio for row in rows],
        agentview=[row.images["agentview"] for row in rows],
        wrist=[row.images["wrist"] for row in rows],
        done=env.success(),
    )
    env.close()
"""


def run(script, tmp_path, name):
    """Each in a process of its own: LIBERO's renderer draws into whatever GL context is current."""
    out = tmp_path / f"{name}.npz"
    text = textwrap.dedent(script).format(size=SIZE, actions=str(tmp_path / "actions.npy"), out=str(out))
    # As Ray leaves it to an actor without GPUs, where robosuite would fail; the plain loop is run as people run it.
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if name == "ours" else {})}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def test_stock_is_a_plain_loop_over_liberos_class_to_the_bit(tmp_path):
    np.save(tmp_path / "actions.npy", ACTIONS)
    plain, ours = run(PLAIN, tmp_path, "plain"), run(OURS, tmp_path, "ours")
    for name in ("agentview", "wrist", "done"):
        np.testing.assert_array_equal(ours[name], plain[name])
    np.testing.assert_array_equal(ours["proprio"], plain["proprio"].astype(np.float32))
    assert len(np.unique(plain["agentview"][0])) > 50, "a picture of something"


def test_the_scripted_teacher_is_evaluated_in_it_as_in_exact_mode(ray_local, tmp_path):
    """The same physics, so the same episode; and the teacher reads a simulator that each reset rebuilds."""
    config = EvalConfig(
        policy="scripted",
        out=tmp_path / "stock",
        suite="libero_goal",
        tasks="7",
        init_states="20",
        videos=0,
        stock=True,
        env=EnvConfig(image_size=16),
        fleet=FleetConfig(actors=1),
    )
    stock = evaluate.evaluate(config)
    as_exact = EvalConfig(
        **{**vars(config), "out": tmp_path / "exact", "stock": False, "env": EnvConfig("exact", image_size=16)}
    )
    exact = evaluate.evaluate(as_exact)
    assert (stock.render, exact.render) == ("stock", "exact")
    assert stock.success.ever.k == stock.success.final.k == 1
    assert stock.steps_mean == exact.steps_mean
    assert stock.episodes != exact.episodes, "one is not taken for the other when it is resumed"


def test_both_ways_of_saying_stock_mean_the_same(tmp_path):
    command = ["--policy", "scripted", "--out", str(tmp_path), "--suite", "libero_goal"]
    said, rendered = (
        evaluate.settled(parse("eval", [*command, *words])) for words in (["--stock"], ["--render=stock"])
    )
    assert said == rendered and said.env.render == "stock"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "libero_goal", "--render", "exact"], "--stock and --render exact: choose one"),
        (["--plugin", "plugins.reach", "--suite", "reach"], "--stock: reach is none of LIBERO's suites"),
    ],
)
def test_what_cannot_be_stock_is_refused(tmp_path, words, message):
    config = parse("eval", ["--policy", "scripted", "--out", str(tmp_path / "out"), "--stock", *words])
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(config)


def test_a_policy_of_exact_images_is_at_home_in_stock_ones():
    """They are the same pixels, and a warning that is none teaches people to look away."""
    shown = images(EnvConfig(render="stock"))
    assert shown == find_suite("libero_goal").images(EnvConfig("stock")) == Trained("stock", 128)
    assert check_images(LocalPolicy("a", str, trained=Trained("exact")), shown) == []
    (warning,) = check_images(LocalPolicy("a", str, trained=Trained("fast")), shown)
    assert warning == "a learnt from 'fast' images and gets 'stock' ones (--render)"
