"""Replicas that answer batches: who gets which answer, what happens when one dies, and real LIBERO through them."""

import functools
import sys
import threading
from collections import Counter

import fakes
import numpy as np
import pytest
import ray
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.collect import collect
from vlaad_ray.configs import (
    CollectConfig,
    DaggerConfig,
    EnvConfig,
    EvalConfig,
    FleetConfig,
    NoSettings,
    OpenVlaConfig,
    ServingConfig,
    UserError,
)
from vlaad_ray.envs.libero_suites import images
from vlaad_ray.evaluate import stage as evaluate
from vlaad_ray.rollout import replicas
from vlaad_ray.rollout.episode import EpisodeSpec, run_episode
from vlaad_ray.rollout.fleet import check_images
from vlaad_ray.rollout.replicas import PolicyUnavailable, Replica, placed, question, unpack
from vlaad_ray.serving.rhythm import Rhythm
from vlaad_ray.teachers import TEACHERS, Teacher, fingerprint
from vlaad_ray.types import Observation, SharedPolicy, Trained

LIGHT = ServingConfig(cpus_per_replica=0)
for module in (fakes, sys.modules[__name__]):  # Ray's workers don't have this folder on their path
    ray.cloudpickle.register_pickle_by_value(module)


def echo(**how):
    return SharedPolicy("echo", functools.partial(fakes.load_echo, **how), execute=1)


def seen(number):
    return Observation("echo", np.full(8, number, np.float32))


def test_waiting_requests_share_a_batch_and_each_gets_its_own_answer(ray_local, tmp_path):
    """The first batch, of whoever came first, is held until all eight have come: then four fit into the next."""
    load = functools.partial(fakes.load_echo, gate=tmp_path / "gate")
    actor = ray.remote(Replica).options(num_cpus=0)
    replica = actor.remote(load, "cpu", ServingConfig(max_batch=4), Rhythm(4, 0.0))
    ray.get(replica.ready.remote())
    answers = [replica.infer.remote(f"client {number}", question(seen(number / 10))) for number in range(8)]
    ray.get(replica.next_seat.remote())  # calls of one caller start in order: all eight wait by now
    (tmp_path / "gate").touch()
    chunks = [unpack(answer) for answer in ray.get(answers)]
    ray.kill(replica)
    sizes = Counter(int(chunk.phase) for chunk in chunks)  # each answer says how large its batch was
    assert sizes[4] >= 4
    assert all(count % size == 0 and size <= 4 for size, count in sizes.items())
    assert [chunk.actions[0, 0] for chunk in chunks] == [np.float32(n / 10) for n in range(8)]


def run_line_episodes(make, count):
    """Episodes of as many environments at once, each in a thread; LineEnv moves by what Echo answers."""
    episodes = [None] * count

    def act(index):
        env = fakes.LineEnv()
        reset = env.reset

        def start_apart(init, seed=0):
            reset(init, seed)
            env.position = 0.1 + init.index / 100

        env.reset = start_apart
        episodes[index] = run_episode(env, make(env), EpisodeSpec(fakes.key(index)))

    threads = [threading.Thread(target=act, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return episodes


@pytest.mark.parametrize("hurt", [fakes.die, fakes.hang], ids=["killed", "hung"])
def test_a_lost_replica_is_replaced_and_no_request_is_lost(ray_local, tmp_path, hurt):
    policy = echo(scar=tmp_path / "scar", hurt=hurt)
    with placed(policy, ServingConfig(replicas=2, cpus_per_replica=0, batch_timeout_s=3)) as make:
        episodes = run_line_episodes(make, 4)
    assert (tmp_path / "scar").exists()
    for index, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.actions[:, 0], episode.proprio[:, 0].clip(-1, 1))
        assert episode.proprio[0, 0] == np.float32(0.1 + index / 100)


def test_a_replica_that_keeps_dying_stops_the_run_with_a_word_on_why(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, "MAX_RESTARTS", 0)
    with placed(echo(scar=tmp_path / "scar", hurt=fakes.die), LIGHT) as make:
        client = make(None)
        with pytest.raises(UserError, match=r"died more than 0 times .*lower --max-batch"):
            client.infer(seen(0))


class Broken(fakes.Echo):
    def infer_batch(self, observations):
        return [] if observations[0].instruction == "forget" else 1 / 0


def load_broken(device):
    return Broken()


def test_a_bug_in_a_policy_reaches_the_caller_as_itself(ray_local):
    with placed(SharedPolicy("broken", load_broken, execute=1), LIGHT) as make:
        client = make(None)
        with pytest.raises(ZeroDivisionError):
            client.infer(seen(0))
        with pytest.raises(ValueError, match="0 answers to 1 observations"):
            client.infer(Observation("forget", np.zeros(8, np.float32)))


def refuse(device):
    raise UserError(f"no such un-norm key on {device}; choose one of a, b")


def test_what_is_wrong_with_a_checkpoint_is_said_before_any_simulator_starts(ray_local):
    with (
        pytest.raises(UserError, match="no such un-norm key on cpu; choose one of a, b"),
        placed(SharedPolicy("bad", refuse, execute=1), LIGHT),
    ):
        raise AssertionError("placed")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ServingConfig(gpus_per_replica=1),
            "no node has 1 CPU and 1 GPU for a replica: the largest has 2 CPUs and no",
        ),
        (ServingConfig(replicas=3), "3 replicas of 1 CPU do not fit: the nodes have room for 2"),
        (ServingConfig(replicas=-1), "--replicas must be 0 or more"),
        (ServingConfig(max_batch=0), "--max-batch must be 1 or more"),
        (ServingConfig(max_wait_ms=-1), "--max-wait-ms must be 0 or more"),
    ],
)
def test_a_placement_that_cannot_work_is_refused(ray_local, config, message):
    """Ray would wait for ever for a GPU that nobody has."""
    with pytest.raises(UserError, match=message), placed(echo(), config):
        raise AssertionError("placed")


def test_more_actions_than_the_chunk_has_cannot_be_executed(ray_local):
    policy = SharedPolicy("echo", fakes.load_echo, execute=3)
    with placed(policy, LIGHT) as make, pytest.raises(UserError, match="--execute 3: the teacher answers with 2"):
        make(None).infer(seen(0))


def test_real_libero_through_replicas_and_an_episode_whose_teacher_vanished_runs_again(
    ray_local, tmp_path, monkeypatch
):
    """With no resends the first request dies with the replica: its episode is counted as retried, never as failed."""
    monkeypatch.setattr(replicas, "MAX_RESENDS", 0)
    policy = echo(scar=tmp_path / "scar", hurt=fakes.die)
    monkeypatch.setitem(TEACHERS, "echo", Teacher(NoSettings, lambda config, suite, execute: policy))
    config = EvalConfig(
        policy="echo",
        out=tmp_path / "out",
        tasks="0",
        init_states="20-21",
        budget=12,
        videos=0,
        serving=LIGHT,
        env=EnvConfig(image_size=32),
        fleet=FleetConfig(actors=2),
    )
    summary = evaluate.evaluate(config)
    assert summary.policy == "echo"
    assert summary.success.ever.n == 2
    assert summary.steps_mean == 12
    assert 1 <= summary.retried <= 2  # both environments' first requests may have shared the batch


@pytest.fixture(scope="module")
def openvla_checkpoint(tmp_path_factory):
    """Tiny random weights in OpenVLA's true layout."""
    pytest.importorskip("transformers")
    from vlaad_ray.models.openvla.random_checkpoint import write_random_checkpoint

    directory = tmp_path_factory.mktemp("openvla")
    write_random_checkpoint(directory, "tiny", torch.float32)
    return directory


def test_openvla_acts_in_real_libero_through_a_replica(ray_local, tmp_path, openvla_checkpoint):
    config = EvalConfig(
        policy="openvla",
        out=tmp_path,
        tasks="0",
        init_states="20-21",
        budget=4,
        videos=0,
        teacher_config=OpenVlaConfig(checkpoint=openvla_checkpoint, dtype="fp32"),
        serving=LIGHT,
        env=EnvConfig(render="exact", image_size=256),
        fleet=FleetConfig(actors=1),
    )
    summary = evaluate.evaluate(config)
    assert summary.success.ever.n == 2
    assert summary.policy == f"openvla-{fingerprint(openvla_checkpoint)}"
    assert summary.warnings == ()


def test_openvla_teaches_a_student_that_acts_beside_it(ray_local, tmp_path, openvla_checkpoint):
    """Both are asked at every answer; what OpenVLA says is recorded, though the student acts."""
    config = CollectConfig(
        tmp_path / "data",
        tasks="0",
        init_states="0",
        budget=4,
        keep_failed=True,
        teacher="openvla",
        teacher_config=OpenVlaConfig(checkpoint=openvla_checkpoint, dtype="fp32"),
        dagger=DaggerConfig(synthetic.write_student(tmp_path / "student"), mix=1.0),
        serving=LIGHT,
        env=EnvConfig(render="exact", image_size=256),
        fleet=FleetConfig(actors=1),
    )
    summary = collect(config)
    assert summary.episodes.failed == 1
    (path,) = store.list_episodes(tmp_path / "data")
    episode = store.read_episode(path, images=False)
    assert f"-openvla-{fingerprint(openvla_checkpoint)}-beside-student-" in path.name
    assert len(episode) == 4 and episode.taught is None
    assert (episode.executed != episode.actions).any(axis=1).all(), "the student acts, the teacher is recorded"


def test_fine_tunes_of_one_architecture_have_other_fingerprints(tmp_path):
    """Their file names, sizes and tensor headers agree: only the weights, or the statistics, differ."""
    for name, weight, statistics in (("a", b"\1", "{}"), ("b", b"\2", "{}"), ("c", b"\1", '{"libero_goal": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"header" + weight * 100)
        (tmp_path / name / "dataset_statistics.json").write_text(statistics)
    assert len({fingerprint(tmp_path / name) for name in "abc"}) == 3
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        fingerprint(tmp_path)


def test_images_that_a_published_checkpoint_never_saw_are_refused_or_reported():
    policy = SharedPolicy("openvla", fakes.load_echo, execute=1, trained=Trained("exact", 256))
    with pytest.raises(UserError, match="learnt from images of 256 pixels, not 128: add --image-size 256"):
        check_images(policy, images(EnvConfig(render="exact")))
    (warning,) = check_images(policy, images(EnvConfig(render="fast", image_size=256)))
    assert "(--render)" in warning


def test_a_vanished_teacher_is_not_taken_for_a_bug(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, "MAX_RESENDS", 0)
    with placed(echo(scar=tmp_path / "scar", hurt=fakes.die), LIGHT) as make:
        client = make(None)
        with pytest.raises(PolicyUnavailable):
            client.infer(seen(0.5))
