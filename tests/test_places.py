"""Where a job may write: never over what another kind of job has made, never over what it reads, never half."""

import errno
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import fakes
import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.annotate import annotate
from vlaad_ray.collect import collect
from vlaad_ray.configs import (
    AnnotateConfig,
    AuditConfig,
    BenchPolicyConfig,
    BenchRolloutConfig,
    CollectConfig,
    EvalConfig,
    ExportConfig,
    PipelineConfig,
    StudyAlphaConfig,
    StudyBudget,
    SweepConfig,
    TrainConfig,
    UserError,
)
from vlaad_ray.evaluate import evaluate
from vlaad_ray.experiments.bench.policy import bench_policy
from vlaad_ray.experiments.bench.rollout import bench_rollout
from vlaad_ray.experiments.studies import alpha
from vlaad_ray.experiments.sweep import sweep
from vlaad_ray.experiments.teacher_audit import run_audit
from vlaad_ray.export import export
from vlaad_ray.models.student.checkpoint import from_pretrained, save_tensors
from vlaad_ray.models.student.vlaad_158m import Vlaad158mConfig
from vlaad_ray.pipeline import run_pipeline
from vlaad_ray.quality.stage import audit
from vlaad_ray.runtime.record import check_place, write_run_record
from vlaad_ray.train import train
from vlaad_ray.types import Outcome

ROOT = Path(__file__).parents[1]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Every kind of output, as far as its job would have come to write it."""
    root = tmp_path_factory.mktemp("outputs")
    data, notes = synthetic.write_dataset(root, 2, steps=4)
    write_run_record(data, CollectConfig(data))
    write_run_record(notes, AnnotateConfig(data, notes))
    synthetic.write_dataset(root / "nameless", 2, steps=4)  # made from Python, so without a record
    synthetic.write_student(root / "checkpoint")
    (root / "export").mkdir()
    (root / "export" / "export.json").write_text("{}\n")
    for name, config in {
        "run": TrainConfig(data, root / "run"),
        "evaluation": EvalConfig("scripted", root / "evaluation"),
        "export": ExportConfig(root / "checkpoint", data, root / "export"),
        "audit": AuditConfig(root / "audit"),
        "pipeline": PipelineConfig(root / "pipeline"),
    }.items():
        write_run_record(root / name, config)
    (root / "run" / "metrics.jsonl").write_text("{}\n")
    outcome = Outcome("libero_object", 0, "s0020", "pick", True, True, steps=80, recorded_steps=90)
    store.write_outcome(root / "evaluation", "an-episode", outcome)
    (root / "clip").mkdir()
    (root / "clip" / "config.json").write_text('{"model_type": "clip"}\n')
    return root


KINDS = {
    "data": "CollectConfig",
    "annotations": "AnnotateConfig",
    "nameless/data": "CollectConfig",
    "nameless/annotations": "AnnotateConfig",
    "checkpoint": None,
    "export": "ExportConfig",
    "run": "TrainConfig",
    "evaluation": "EvalConfig",
    "audit": "AuditConfig",
    "pipeline": "PipelineConfig",
    "clip": None,
}
JOBS = {
    "collect": (collect, lambda root, out: CollectConfig(out, init_states="0", tasks="0")),
    "annotate": (annotate, lambda root, out: AnnotateConfig(root / "data", out)),
    "train": (train, lambda root, out: TrainConfig(root / "data", out, annotations=root / "annotations")),
    "eval": (evaluate, lambda root, out: EvalConfig(str(root / "checkpoint"), out)),
    "export": (export, lambda root, out: ExportConfig(root / "checkpoint", root / "data", out)),
    "audit": (run_audit, lambda root, out: AuditConfig(out, data=root / "data")),
    "live audit": (run_audit, lambda root, out: AuditConfig(out, teacher="scripted", episodes=1)),
    "sweep": (sweep, lambda root, out: SweepConfig(TrainConfig(root / "data", out))),
    "pipeline": (run_pipeline, lambda root, out: PipelineConfig(out)),
    "study": (alpha.study, lambda root, out: StudyAlphaConfig(StudyBudget(out))),
    "bench rollout": (bench_rollout, lambda root, out: BenchRolloutConfig(out)),
    "bench policy": (bench_policy, lambda root, out: BenchPolicyConfig(out=out)),
}


FOREIGN = [
    (name, kind)
    for name, (_, config) in JOBS.items()
    for kind, made_by in KINDS.items()
    if type(config(Path("root"), Path("out"))).__name__ != made_by
]


@pytest.mark.parametrize(("name", "kind"), FOREIGN)
def test_no_job_writes_over_what_another_kind_of_job_has_made(outputs, name, kind):
    """export --out CHECKPOINT put its own config.json into the checkpoint, which then loaded no more."""
    stage, config = JOBS[name]
    before = contents(outputs)
    with pytest.raises(UserError, match=r"^--out \S+ (holds|is also) .*choose another"):
        stage(config(outputs, outputs / kind))
    assert contents(outputs) == before


@pytest.mark.parametrize("kind", [kind for kind, made_by in KINDS.items() if made_by])
def test_a_job_may_write_again_to_what_it_has_made_and_to_what_holds_nothing_of_the_kind(outputs, kind, tmp_path):
    check_place("--out", outputs / kind, KINDS[kind])
    (tmp_path / "notes.txt").write_text("mine\n")
    check_place("--out", tmp_path, KINDS[kind])
    check_place("--out", outputs, KINDS[kind])  # has outputs of all kinds in folders of their own


def test_a_repaired_copy_is_no_place_for_an_audit(outputs, tmp_path):
    """Its record is an audit's, too: summary.json of the copy would have been overwritten."""
    copy = tmp_path / "copy"
    store.write_episode(copy, synthetic.episode(0, steps=4), {})
    write_run_record(copy, AuditConfig(tmp_path / "audit", data=outputs / "data", repair=copy))
    before = contents(copy)
    with pytest.raises(UserError, match=r"--out .* holds episodes"):
        audit(AuditConfig(copy, data=outputs / "data"), store.list_episodes(outputs / "data"))
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("stage", "config", "flag"),
    [
        (
            evaluate,
            lambda root: EvalConfig("scripted", root / "evaluation", compare_to=root / "evaluation"),
            "--compare-to",
        ),
        (train, lambda root: TrainConfig(root / "run", root / "run", objective="bc"), "--data"),
        (
            train,
            lambda root: TrainConfig(
                root / "data",
                root,
                objective="bc",
                student="vlaad_158m",
                network=Vlaad158mConfig(backbone=str(root / "backbone")),
            ),
            "--backbone",
        ),
        (
            train,
            lambda root: TrainConfig(root / "data", root / ".", annotations=root / "checkpoint" / "notes"),
            "--annotations",
        ),
    ],
)
def test_a_job_never_replaces_what_it_reads(outputs, stage, config, flag):
    """train --backbone RUN/backbone --out RUN removed the backbone before it looked at it."""
    before = contents(outputs)
    with pytest.raises(UserError, match=f"(is also {flag}|^{flag} .* lies where --out)"):
        stage(config(outputs))
    assert contents(outputs) == before


@contextmanager
def small_files(size):
    """The kernel refuses files above `size` bytes, much as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "JSON": lambda folder: store.write_json(folder / "summary.json", ["x" * 1000] * 1000),
    "episode": lambda folder: store.write_episode(folder, fakes.episode(steps=60, size=64), {}),
    "arrays": lambda folder: store.cached_arrays(folder / "a.npz", lambda: {"a": np.zeros(100_000)}),
    "weights": lambda folder: save_tensors(folder / "model.safetensors", {"a": torch.zeros(100_000)}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_no_half_one(name, tmp_path):
    with small_files(50_000), pytest.raises(UserError, match=r"^cannot write .*: .*; make room, then rerun") as raised:
        WRITERS[name](tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "another place")]
)
def test_what_the_disk_says_is_passed_on_with_what_to_do(tmp_path, number, remedy):
    path = tmp_path / "file"
    with (
        pytest.raises(UserError, match=f"^cannot write {path}: {os.strerror(number)}; .*{remedy}"),
        store.replacing(path),
    ):
        raise OSError(number, os.strerror(number))


def test_other_errors_while_writing_stay_what_they_are(tmp_path):
    """A lost connection is not a full disk."""
    with pytest.raises(ConnectionResetError), store.replacing(tmp_path / "file"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


@pytest.mark.parametrize("name", ["2026-07-01T12:30", "run:1", "file:", "100%25 %d", "-x", "a b #?'é&"])
def test_data_may_lie_below_any_name(tmp_path, monkeypatch, name):
    """pyarrow took the relative path run:1/data/… for a URI of an unknown scheme."""
    monkeypatch.chdir(tmp_path)
    path = store.write_episode(Path(name), fakes.episode(), {})
    assert store.list_episodes(Path(name)) == [path]
    assert len(store.read_episode(path)) == 6
    store.copy_with_actions(path, Path(name) / "copy", fakes.episode().actions, {})
    assert sorted(each.name for each in tmp_path.rglob("*.parquet")) == [path.name] * 2
    checkpoint = synthetic.write_student(Path(name) / "student")
    assert from_pretrained(checkpoint).training == {"render": "fast"}


@pytest.mark.parametrize("name", ["collect", "train"])
def test_an_out_that_is_a_file_or_not_ones_own_is_one_line(outputs, tmp_path, name):
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "closed").mkdir(mode=0o500)
    words = {
        "collect": [],
        "train": ["--data", outputs / "data", "--objective", "bc"],
    }[name]
    for out, message in (
        (tmp_path / "file", "is not a directory; choose another"),
        (tmp_path / "file" / "below", "is not a directory; choose another"),
        (tmp_path / "closed" / "out", "you may not write to"),
    ):
        done = subprocess.run(
            [sys.executable, f"jobs/{name}.py", *words, "--out", out],
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=fakes.without_root_rights,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: --out ") and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr
    assert (tmp_path / "file").read_text() == "mine\n"


def test_what_cannot_be_written_on_a_node_is_one_line(ray_local, outputs, tmp_path):
    """Ray Data wraps a task's error in a page on how to retry."""
    for out, folder in (("notes", "annotations"), ("copy", "episodes")):
        (tmp_path / out).mkdir()
        (tmp_path / out / folder).write_text("a file in the way\n")
    data, paths = outputs / "data", store.list_episodes(outputs / "data")
    for work in (
        lambda: annotate(AnnotateConfig(data, tmp_path / "notes")),
        lambda: audit(AuditConfig(tmp_path / "audit", data=data, repair=tmp_path / "copy"), paths),
    ):
        with pytest.raises(UserError) as raised:
            work()
        assert type(raised.value) is UserError
        assert re.fullmatch(r"cannot write \S+\.parquet: .*; choose another place", str(raised.value))
