"""What a user sees while a job runs: its progress, and nothing that libraries say to each other."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
from rich.console import Console

from vlaad_ray.runtime import cli
from vlaad_ray.train import watch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def screen(monkeypatch):
    """What is printed, as into a file."""
    console = Console(file=io.StringIO(), width=120)
    monkeypatch.setattr(cli, "console", console)
    return console.file


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset"), 6, steps=10)


def run(job, *flags):
    command = [sys.executable, f"jobs/{job}.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


def test_training_prints_a_line_an_epoch_and_nothing_of_its_libraries(dataset, tmp_path):
    """There were deprecations of Ray Data, an error of Ray Train's about itself, "(RayTrainWorker pid=…)"."""
    data, notes = dataset
    flags = ["--epochs", 3, "--batch-size", 16, "--chunk", 1, "--image-size", 32, "--precision", "fp32"]
    done = run(
        "train", "--data", data, "--annotations", notes, "--validation-fraction", 0.34, "--out", tmp_path, *flags
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    epochs = [line for line in lines if re.match(r"train: \d/3 loss [\d.]+, near .* samples/s", line)]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    ours = (r"train: 6 episodes", r"train: \d/3", r"Student", r"[┌│└]", r"Results: ", r"$")
    assert [line for line in lines if not re.match("|".join(ours), line)] == []


def test_annotating_prints_nothing_of_its_libraries(dataset, tmp_path):
    done = run("annotate", "--data", dataset[0], "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pid=" not in done.stdout and "WARN" not in done.stdout


def test_a_terminal_sees_how_fast_it_goes_and_how_long_it_takes(monkeypatch):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    monkeypatch.setattr(cli, "console", console)
    with cli.progress("collect", 3) as advance:
        for _ in range(3):
            advance("kept")
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", console.file.getvalue())
    assert re.search(r"collect ━+ 3/3 0:00:0\d \S+/s 0:00:00 kept", plain), "done, elapsed, rate, left, note"


def record(epoch, loss):
    return {"epoch": epoch, "train": {"loss": loss, "near": 0.5}, "validation": {}, "samples_per_second": 100.0}


def write(out, *records):
    (out / "new").write_text("".join(json.dumps(each) + "\n" for each in records))
    (out / "new").rename(out / "metrics.jsonl")


def test_a_continued_run_shows_its_epochs_once(screen, tmp_path):
    """Killed after its third epoch, of which two were saved: the third is trained again, and is another."""
    write(tmp_path, record(1, 3.0), record(2, 2.0), record(3, 1.0))
    with watch.epochs(tmp_path, 4):
        write(tmp_path, record(1, 3.0), record(2, 2.0), record(3, 1.5))
        write(tmp_path, record(1, 3.0), record(2, 2.0), record(3, 1.5), record(4, 0.5))
    losses = re.findall(r"train: (\d)/4 loss ([\d.]+)", screen.getvalue())
    assert losses == [("1", "3.000"), ("2", "2.000"), ("3", "1.500"), ("4", "0.500")]


def test_a_run_that_fails_before_its_first_epoch_shows_none(screen, tmp_path):
    write(tmp_path, record(1, 3.0))
    with pytest.raises(RuntimeError), watch.epochs(tmp_path, 4):
        raise RuntimeError
    assert "1/4" not in screen.getvalue()
