"""A whole project in an object store, its driver killed or doubled; and clusters whose nodes do not share a disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
import synthetic
from fakes import episode

from vlaad_ray import files, store
from vlaad_ray.annotate import annotate
from vlaad_ray.collect import collect
from vlaad_ray.configs import (
    AnnotateConfig,
    CollectConfig,
    EnvConfig,
    EvalConfig,
    ExportConfig,
    FleetConfig,
    SpaceConfig,
    SweepConfig,
    TrainConfig,
    UserError,
)
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.evaluate import evaluate
from vlaad_ray.experiments.sweep import sweep
from vlaad_ray.export import export
from vlaad_ray.report import write_report
from vlaad_ray.train import train
from vlaad_ray.types import Collected, Observation

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EPISODES = ("--tasks", "0", "--image-every", "4", "--image-size", "32")


def environment(**changes):
    settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **changes}
    if "RAY_ADDRESS" not in changes:
        settings.pop("RAY_ADDRESS", None)
    return settings


def job(name, *flags, **settings):
    command = [sys.executable, f"jobs/{name}.py", *map(str, flags)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    out, err = process.communicate()
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    return out


def observation(episode):
    images = {camera: seen[0] for camera, seen in episode.images.items()}
    return Observation(episode.instruction, episode.proprio[0], images)


def wait_for(condition, process):
    """Until `condition` holds: not for a time. The process may end before."""
    deadline = time.monotonic() + 300
    while not condition() and time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            return


def error_line(process):
    _, err = process.communicate()
    assert process.returncode == 2, err[-3000:]
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def cluster(ray_local):
    """The environment of a job that joins the tests' Ray, whose processes find the store."""
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def test_a_project_in_a_bucket_from_collection_to_report(s3, cluster):
    """One stage that takes the URI for a folder of that name is enough to lose its work with the machine."""
    run = s3.bucket("project") / "run"
    env, one = EnvConfig(image_size=32), FleetConfig(actors=1)
    collect(CollectConfig(run / "data", tasks="0", init_states="0-1", image_every=4, env=env, fleet=one))
    annotate(AnnotateConfig(run / "data", run / "annotations"))
    assert len(store.list_annotations(run / "annotations")) == len(store.list_episodes(run / "data")) == 2

    settings = TrainConfig(run / "data", run / "train", run / "annotations", epochs=4, batch_size=32, workers=1)
    settings = dataclasses.replace(settings, image_size=32)
    flags = ("--data", settings.data, "--out", settings.out, "--annotations", settings.annotations)
    flags = (*flags, "--epochs", "4", "--batch-size", "32", "--workers", "1", "--image-size", "32")
    first = job("train", *flags, **cluster)
    wait_for(lambda: files.children(run / "train" / "ray", "snapshot.json"), first)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL, "killed before it ended"
    assert not (run / "train" / "summary.json").exists()
    before = files.read_bytes(run / "train" / "metrics.jsonl").splitlines()
    train(settings)
    after = files.read_bytes(run / "train" / "metrics.jsonl").splitlines()
    assert [json.loads(line)["epoch"] for line in after] == list(range(1, 5))
    assert after[0] == before[0], "the first epoch was trained once"

    checkpoint = run / "train" / "checkpoint"
    flags = {"tasks": "0", "init_states": "20", "budget": 20, "env": env}
    summary = evaluate(EvalConfig(str(checkpoint), run / "eval_student", videos=1, **flags))
    assert summary.success.ever.n == 1
    write_report(run)
    assert "data:video/mp4;base64" in files.read_bytes(run / "report.html").decode()
    export(ExportConfig(checkpoint, run / "data", run / "export", backend="onnx", precision="fp32", frames=32))
    exported = StudentPolicy.from_pretrained(str(run / "export"))
    assert exported.infer(observation(store.read_episode(store.list_episodes(run / "data")[0]))).actions.shape == (5, 7)
    assert not [path for path in ROOT.iterdir() if path.name.startswith("s3:")]


@pytest.mark.slow
def test_a_sweep_in_a_bucket_keeps_its_trials_there(s3, cluster):
    """Ray Tune, too, would make a folder of the URI, on whatever node a trial runs."""
    data, notes = synthetic.write_dataset(s3.bucket("sweeps"), 6, steps=10)
    trained = TrainConfig(data, data.parent / "sweep", notes, epochs=1, batch_size=32, image_size=32, workers=1)
    trained = dataclasses.replace(trained, validation_fraction=0.4)
    config = SweepConfig(trained, space=SpaceConfig(alpha="0.5,1", lr=""), search="grid", early_stopping=False)
    assert sweep(config)["counts"]["finished"] == 2
    assert files.children(config.out / "tune", "tuner.pkl")
    assert store.read_json(config.out / "best.json")["stage"] == "TrainConfig"
    assert sweep(config)["counts"]["finished"] == 2, "shown again"


def test_a_driver_killed_in_collection_loses_nothing_that_was_stored(s3, cluster):
    out = s3.bucket("killed") / "data"
    flags = ("collect", "--out", out, *EPISODES, "--init-states", "0-3", "--actors", "1")
    first = job(*flags, **cluster)
    wait_for(lambda: files.children(out / "outcomes", ".json"), first)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL, "killed before it ended"
    before = {path.name: path.stat().st_mtime for path in store.list_episodes(out)}
    assert 0 < len(before) < 4
    finished(job(*flags, **cluster))
    after = {path.name: path.stat().st_mtime for path in store.list_episodes(out)}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before, "collected twice"


def test_two_drivers_of_one_dataset_end_with_the_planned_episodes(s3, cluster):
    out = s3.bucket("twice") / "data"
    flags = ("collect", "--out", out, *EPISODES, "--init-states", "0-1", "--actors", "1")
    for process in [job(*flags, **cluster) for _ in range(2)]:
        finished(process)
    assert len(store.list_episodes(out)) == len(store.read_outcomes(out, Collected)) == 2
    counts = store.read_json(out / "summary.json")["episodes"]
    assert counts["kept"] + counts["failed"] + counts["lost"] == counts["planned"] == 2


def test_a_store_that_cannot_be_used_is_one_line(s3):
    assert "bucket does not exist" in error_line(job("collect", "--out", "s3://no-such-bucket/x", *EPISODES))
    assert "as s3://bucket/x" in error_line(job("annotate", "--data", "s3:/bucket/x", "--out", "y"))
    closed = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert "the store cannot be used" in error_line(
        job("annotate", "--data", "s3://project/run", "--out", "s3://project/notes", **closed)
    )


# ---------------------------------------------------------------------------------------------- nodes of a cluster


def answers(address):
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two_disks(tmp_path_factory):
    """(address, folder) of a cluster of two nodes; what lies in `folder` is on another disk for the second."""
    folder = tmp_path_factory.mktemp("unshared")
    address = f"127.0.0.1:{free_port()}"
    settings = environment(RAY_AUTH_MODE="disabled")
    start = [str(BIN / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats", "--include-dashboard=false"]
    # A short name: Ray's sockets lie in there, and names of sockets end at 107 characters.
    place = tempfile.mkdtemp(prefix="ray")
    head = [*start, "--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={place}"]
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    started = [subprocess.Popen(head, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    node = [word for word in start if "dashboard" not in word] + [f"--address={address}"]
    mounted = ["unshare", "-m", "sh", "-c", script, str(folder), *node]
    wait_for(lambda: answers(address), started[0])
    started.append(subprocess.Popen(mounted, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    subprocess.run([sys.executable, "-c", WAIT_FOR_NODES, address], env=settings, check=True, timeout=300)
    yield address, folder
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.wait(timeout=120)
    shutil.rmtree(place, ignore_errors=True)


WAIT_FOR_NODES = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.1)
"""


def test_a_disk_that_the_nodes_do_not_share_is_found_out_before_work_starts(two_disks):
    """Episodes of one node were lost, and the job said 4 of 4 kept and ended well."""
    address, folder = two_disks
    settings = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    line = error_line(job("collect", "--out", folder / "data", *EPISODES, "--init-states", "0-1", **settings))
    assert f"--out {folder / 'data'}" in line
    assert "give a directory on a mount that all nodes share, or a URI" in line
    assert not (folder / "data").exists()

    data = store.write_episode(folder / "have", episode(0), {"render": "fast"}).parents[1]
    line = error_line(job("annotate", "--data", data, "--out", folder.parent / "notes", **settings))
    assert f"--data {data} is not there on node" in line


def test_a_relative_place_on_a_cluster_is_refused_with_the_path_to_use(two_disks):
    """Each node took it for a folder of its own working directory."""
    address, _ = two_disks
    settings = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    line = error_line(job("collect", "--out", "relative-data", *EPISODES, **settings))
    assert f"write {ROOT / 'relative-data'}" in line
    assert not (ROOT / "relative-data").exists()


def test_a_summary_in_which_episodes_are_missing_is_not_written(tmp_path):
    """Counts that do not add up looked like a success."""
    store.write_outcome(tmp_path, "a", Collected("libero_object", 0, "s0000", True, True, True, True, 9))
    mine, lost = store.account_for(tmp_path, Collected, ["a", "b"], ["b"], {})
    assert (set(mine), lost) == ({"a"}, ["b"])
    with pytest.raises(UserError, match=r"1 of 3 episodes were run and are not here \(first c\)"):
        store.account_for(tmp_path, Collected, ["a", "b", "c"], ["b"], {})
    assert store.account_for(tmp_path, Collected, ["a"], ["a"], {})[1] == [], "lost here, but another driver has it"
