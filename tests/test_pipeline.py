"""The whole way, tiny: as one command on this machine, and as a submitted job on a running cluster."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlaad_ray import store
from vlaad_ray.annotate.random_checkpoint import write_checkpoint
from vlaad_ray.main import main

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def environment(**changes):
    settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **changes}
    settings.pop("RAY_ADDRESS", None)
    return settings


FLAGS = ["--init-states", "0-1", "--placements", "1", "--image-every", "4", "--image-size", "32", "--actors", "1"]
FLAGS += ["--epochs", "3", "--eval.init-states", "20", "--eval.execute", "5", "--eval.budget", "150"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(its directory, what it printed) of the one command, run in a process and on a Ray of its own."""
    out = tmp_path_factory.mktemp("pipeline")
    command = [sys.executable, "jobs/pipeline.py", "--out", str(out), *FLAGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (0, ""), "a library's warnings are none of the user's business"
    return out, done.stdout


def test_pipeline_leaves_everything_it_promises(finished):
    out, said = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher"]["success"]["ever"]["k"] == 1
    assert summary["student"]["success"]["ever"]["n"] == 1
    assert summary["paired"]["ever"]["n"] == 1
    assert set(summary["seconds"]) == {"collect", "annotate", "train", "evaluate teacher", "evaluate student"}
    for part in ("data", "annotations", "train", "eval_teacher", "eval_student"):
        assert json.loads((out / part / "config.json").read_text())["versions"]["ray"]
        assert (out / part / "summary.json").exists()
    page = (out / "report.html").read_text()
    assert "data:video/mp4;base64" in page
    for line in ("teacher", "student", "Held-out init states"):
        assert line in said


def test_a_finished_pipeline_is_only_shown_again(finished, capsys):
    """No stage may need work to do, or Ray, to get through."""
    out, _ = finished
    student = json.loads((out / "summary.json").read_text())["student"]["success"]
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    main("pipeline", ["--out", str(out), *FLAGS])
    assert "Held-out init states" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == made
    assert json.loads((out / "summary.json").read_text())["student"]["success"] == student


def test_training_prints_a_line_an_epoch(finished):
    _, said = finished
    epochs = [line for line in said.splitlines() if re.match(r"train: \d/3 loss [\d.]+, near .* samples/s", line)]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]


def test_training_and_annotating_print_nothing_of_their_libraries(finished):
    """There were deprecations of Ray Data, an error of Ray Train's about itself, "(RayTrainWorker pid=…)"."""
    _, said = finished
    parts = re.split(r"─+ ([a-z ]+) ─+\n", said)
    train = dict(zip(parts[1::2], parts[2::2], strict=True))["train"]
    ours = (r"train: \d episodes", r"train: \d/3", r"$")
    assert [line for line in train.splitlines() if not re.match("|".join(ours), line)] == []
    assert "pid=" not in said and "WARN" not in said


@pytest.mark.slow
def test_a_round_of_dagger_teaches_the_student_of_the_first_training(tmp_path):
    """From collection to the table at the end, which took the round's record for a dict."""
    flags = ["--out", str(tmp_path), "--init-states", "0-1", "--placements", "0", "--image-every", "4", "--rounds", "1"]
    flags += ["--image-size", "32", "--epochs", "1", "--eval.init-states", "20", "--eval.videos", "0"]
    flags += ["--round-keep", "1", "--round-epochs", "1", "--round-placements", "1"]
    command = [sys.executable, "jobs/pipeline.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 episodes" in done.stdout
    (found,) = store.read_json(tmp_path / "summary.json")["rounds"]
    assert found["kept"] == {"0": 1} and found["taught_frames"] > 0
    before, after = (
        store.read_json(tmp_path / each / "checkpoint" / "config.json") for each in ("train", "round1/train")
    )
    assert after["training"]["episodes"] == before["training"]["episodes"] + 1
    assert "started_from" in after["training"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """A Ray head of its own, as on a cluster; yields the address that jobs are submitted to."""
    # Ports of its own: another Ray on this machine has the default ones, the agent's too, without which no job starts.
    port, gcs_port, agent_port = (free_port() for _ in range(3))
    settings = environment(RAY_AUTH_MODE="disabled")
    ray = str(BIN / "ray")
    start = [ray, "start", "--head", f"--port={gcs_port}", f"--dashboard-port={port}", "--num-cpus=2", "--block"]
    start += [f"--dashboard-agent-listen-port={agent_port}"]
    start += ["--include-dashboard=true", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(start, env=settings, stdout=log, stderr=subprocess.STDOUT)
    yield f"http://127.0.0.1:{port}", settings
    died = process.poll() is not None
    process.terminate()
    process.wait(timeout=120)
    assert not died, f"the head ended by itself: {(tmp_path / 'head.log').read_text()[-3000:]}"


def submit_when_ready(command, settings):
    """A head answers before the agent that starts jobs has joined it: ask again while that is all it complains of."""
    deadline = time.monotonic() + float(os.environ["RAY_DASHBOARD_STARTUP_TIMEOUT_S"])
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=ROOT)
        not_yet = ("No available agent", "Failed to connect to Ray", "Connection refused")
        if done.returncode == 0 or not any(text in done.stdout + done.stderr for text in not_yet):
            return done
        time.sleep(1)
    pytest.fail(f"the head never took a job: {done.stdout}{done.stderr}")


def test_a_submitted_job_collects_like_a_local_one(head, tmp_path):
    """Types or functions that live in a job script, or a forgotten runtime environment, fail only here."""
    address, settings = head
    out = tmp_path / "data"
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    job = ["--", sys.executable, "jobs/collect.py", "--out", str(out), "--tasks", "0", "--init-states", "0-1"]
    job += ["--image-every", "50", "--image-size", "32", "--actors", "1"]
    done = submit_when_ready([*submit, *job], settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(store.list_episodes(out)) == 2
    assert store.read_json(out / "summary.json")["episodes"]["kept"] == 2

    for flags, complaint in (
        (("--out", str(out), "--suite", "no_such_suite"), "error: unknown suite 'no_such_suite'"),
        (("--out", "data"), "error: --out data is relative, and a submitted job runs in Ray's own copy"),
    ):
        command = [*submit, "--", sys.executable, "jobs/collect.py", *flags]
        failing = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=ROOT)
        assert failing.returncode != 0
        assert complaint in failing.stdout + failing.stderr


@pytest.mark.slow
def test_a_submitted_job_annotates_with_the_real_engine(head, tmp_path):
    """The engine's own runtime environment and that of the job must go together; and it must find its model."""
    address, settings = head
    model = write_checkpoint(tmp_path / "tiny-qwen2.5-vl")
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", sys.executable]
    collect = ["jobs/collect.py", "--out", str(tmp_path / "data"), "--tasks", "0", "--init-states", "0-3"]
    done = submit_when_ready([*submit, *collect, "--image-every", "10", "--image-size", "48"], settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    annotate = ["jobs/annotate.py", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    annotate += ["--annotator", "vlm", "--model", str(model), "--max-model-len", "2048", "--picture-pixels", "56"]
    done = submit_when_ready([*submit, *annotate], settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = store.read_json(tmp_path / "out" / "summary.json")
    assert summary["episodes"]["annotated"] == 4
    assert summary["valid"] > 0.9 * summary["questions"]
