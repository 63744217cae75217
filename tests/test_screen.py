"""What a user sees while a job runs: its progress. (Nothing of its libraries: test_pipeline.)"""

import io
import json
import re

import pytest
from rich.console import Console

from vlaad_ray.runtime import cli
from vlaad_ray.train import watch


@pytest.fixture
def screen(monkeypatch):
    """What is printed, as into a file."""
    console = Console(file=io.StringIO(), width=120)
    monkeypatch.setattr(cli, "console", console)
    return console.file


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
