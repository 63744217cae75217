"""What users get wrong, typed as they would type it: one clear line, a non-zero exit, and no file harmed."""

import json
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from vlaad_ray import store
from vlaad_ray.main import main
from vlaad_ray.models.student.checkpoint import save_pretrained
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import train_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty dataset, a good one, a truncated one, a foreign one, and checkpoints of other kinds."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    for name in ("good", "truncated"):
        for index in range(2):
            store.write_episode(root / name, fakes.episode(index), {"render": "fast", "kept": True})
    victim = store.list_episodes(root / "truncated")[0]
    victim.write_bytes(victim.read_bytes()[:-200])

    tokenizer = train_tokenizer(("pick up the milk",), 16)
    student = SmallStudent(
        SmallConfig(image_size=32, width=8, hidden=32, vocabulary=tokenizer.vocabulary, text_length=16)
    )
    for name in ("newer", "broken"):
        save_pretrained(root / name, student, tokenizer, {})
    config = json.loads((root / "newer" / "config.json").read_text())
    (root / "newer" / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    weights = root / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return root


CASES = {
    "unknown suite": ("collect --suite libero_objects --out {out}", "unknown suite 'libero_objects'; choose one of"),
    "unknown task": ("collect --tasks 0-12 --out {out}", "libero_object has no task 10; choose from 0-9"),
    "init state out of range": (
        "eval --policy scripted --init-states 45-60 --out {out}",
        "init state 60 of libero_object task 0 does not exist; choose from 0-49",
    ),
    "evaluation states in collection": ("collect --init-states 10-25 --out {out}", "kept for evaluation"),
    "no dataset": ("annotate --data {root}/nowhere --out {out}", "is not a directory; collect it with jobs/collect.py"),
    "empty dataset": ("train --data {root}/empty --objective bc --out {out}", "holds no episodes; collect it with"),
    "truncated file": ("train --data {root}/truncated --objective bc --out {out}", "is corrupt"),
    "no annotations": ("train --data {root}/good --out {out}", "--objective dual_path needs --annotations"),
    "checkpoint of another schema": (
        "eval --policy {root}/newer --out {out}",
        "has schema version 99, this vlaad_ray",
    ),
    "broken checkpoint": ("eval --policy {root}/broken --out {out}", "model.safetensors is corrupt"),
    "audit of nothing": ("audit --data {root}/empty --out {out}", "holds no episodes; collect it with"),
    "audit of two things": (
        "audit --data {root}/good --teacher scripted --out {out}",
        "give either --data DIR (a dataset) or --teacher NAME",
    ),
    "noise beyond what can be": (
        "collect --teacher-noise.flip-rate 3 --out {out}",
        "--teacher-noise.flip-rate 3 is not a fraction from 0 to 0.27",
    ),
    "no such policy": ("eval --policy {root}/nowhere --out {out}", "neither a teacher (scripted, openvla, remote"),
    "teacher without weights": ("collect --teacher openvla --out {out}", "--teacher openvla needs --checkpoint DIR"),
    "no policy server": (
        "collect --teacher remote --url ws://127.0.0.1:9 --connect-timeout-s 0.1 --out {out}",
        "no policy server at ws://127.0.0.1:9 within 0.1 s",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_clear_line(folder, tmp_path, capsys, case):
    words, message = CASES[case]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    job, *flags = words.format(root=folder, out=tmp_path / "out").split()
    with pytest.raises(SystemExit) as ended:
        main(job, flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_job_says_no_more_than_that_line(tmp_path):
    """As a process: with what its imports might print."""
    command = [sys.executable, "jobs/eval.py", "--policy", "scripted", "--init-states", "45-60"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    line = "error: init state 60 of libero_object task 0 does not exist; choose from 0-49\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
