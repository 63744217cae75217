"""Stage 3 on real Ray: it learns, resumes after a kill, shares work between workers, and says what is wrong."""

import dataclasses
import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import clip_checkpoint
import pyarrow.parquet as pq
import pytest
import ray
import synthetic
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from vlaad_ray import store
from vlaad_ray.configs import TrainConfig, UserError
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.methods.vlaad.config import BothConfig
from vlaad_ray.models.student.backbone import fingerprint
from vlaad_ray.models.student.checkpoint import read_config
from vlaad_ray.models.student.vlaad_158m import Vlaad158mConfig
from vlaad_ray.summaries import TrainSummary
from vlaad_ray.train import workers
from vlaad_ray.train.stage import train
from vlaad_ray.train.trackers import find_trackers
from vlaad_ray.types import Observation

EPISODES, HELD_OUT, STEPS = 40, 8, 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset"), EPISODES, STEPS)


def config(dataset: tuple[Path, Path], out: Path, **changes: object) -> TrainConfig:
    """Small and quick. One action ahead, as the synthetic cups jump about; one thread, for tiny tensors."""
    settings = TrainConfig(
        data=dataset[0],
        out=out,
        annotations=dataset[1],
        epochs=2,
        batch_size=32,
        chunk=1,
        image_size=32,
        precision="fp32",
        validation_fraction=0.2,
        workers=1,
        cpus_per_worker=1,
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture(scope="module")
def finished(ray_local: None, dataset: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory):
    """A run long enough to learn the task."""
    settings = config(dataset, tmp_path_factory.mktemp("runs") / "out", epochs=18)
    return settings, train(settings)


def test_the_student_learns_where_the_named_cup_is(finished):
    """On held-out episodes: the position by the picture and the instruction together, the gripper by proprioception."""
    _, summary = finished
    near = summary.validation["near_by_dimension"]
    assert near[0] > 0.6, "position of the named cup"
    assert near[6] > 0.95, "gripper"
    assert summary.validation["frames"] == HELD_OUT * STEPS


def test_a_run_leaves_metrics_config_and_a_checkpoint_that_knows_its_origin(finished):
    settings, summary = finished
    lines = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 19))
    assert {"loss_full", "loss_image", "exact_by_dimension", "near_by_phase"} <= lines[0]["validation"].keys()
    assert set(lines[-1]["validation"]["near_by_phase"]) == {"approaching", "grasping"}
    training = read_config(settings.out / "checkpoint")["training"]
    assert training["render"] == "fast"
    assert training["init_states"]["libero_object"]["1"][:2] == ["s0001", "s0003"]
    assert (training["annotators"], training["taxonomies"]) == (["rules"], [9])
    assert store.read_summary(settings.out, TrainSummary) == summary
    assert (settings.out / "config.json").exists()


def test_a_finished_run_is_shown_again_not_repeated(finished):
    settings, summary = finished
    before = (settings.out / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    assert train(settings) == summary
    assert (settings.out / "checkpoint" / "model.safetensors").stat().st_mtime_ns == before


def test_an_out_directory_of_another_run_is_refused(finished):
    settings, _ = finished
    with pytest.raises(UserError, match=r"other settings \(lr: 0.001 there, 0.01 now\)"):
        train(dataclasses.replace(settings, lr=0.01))


def test_two_workers_share_the_frames_and_count_all_of_them(ray_local, dataset, tmp_path):
    """Each frame must be trained on by one worker, and validation counted over both."""
    summary = train(config(dataset, tmp_path / "out", workers=2, objective="bc", epochs=1, trackers=("tensorboard",)))
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1, "one worker logs"
    assert summary.validation["frames"] == pytest.approx(HELD_OUT * STEPS, abs=1)  # equal shares drop an odd one
    assert summary.train["frames"] >= (EPISODES - HELD_OUT) * STEPS * 0.8


@pytest.mark.slow
def test_a_clip_student_goes_from_a_clip_checkpoint_to_a_policy(ray_local, tmp_path):
    """Two workers, all parts of the loss; neither adapters nor auxiliary heads are left in what is deployed."""
    clip_checkpoint.write(tmp_path / "clip")
    data = synthetic.write_dataset(tmp_path, 4, steps=10)
    network = Vlaad158mConfig(backbone=str(tmp_path / "clip"))
    changes = {"student": "vlaad_158m", "network": network, "objective": "both", "workers": 2}
    changes |= {"image_size": 0, "cameras": ("agentview", "wrist"), "chunk": 5, "precision": "bf16", "batch_size": 8}
    settings = config(data, tmp_path / "out", **changes, epochs=1)
    summary = train(settings)
    assert summary.train["loss_phase"] > 0 and summary.train["loss_direction"] > 0
    record = read_config(settings.out / "checkpoint")
    assert record["architecture"] == "clip"
    assert record["training"]["backbone"] == fingerprint(str(tmp_path / "clip"))
    resumable = next((settings.out / "ray").glob("checkpoint_*/trained.safetensors"))
    assert "student.text.embeddings.token_embedding.weight" not in load_file(resumable), "the backbone, once more"
    episode = synthetic.episode(0)
    images = {camera: frames[0] for camera, frames in episode.images.items()}
    policy = StudentPolicy.from_pretrained(settings.out / "checkpoint")
    assert policy.infer(Observation(episode.instruction, episode.proprio[0], images)).actions.shape == (5, 7)
    names = load_file(settings.out / "checkpoint" / "model.safetensors")
    assert not [name for name in names if "lora" in name or "heads" in name or "base_layer" in name]


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_loaded(ray_local, dataset, tmp_path):
    """Linux would end the worker instead, after minutes, and say nothing."""
    clip_checkpoint.write(tmp_path / "clip")
    network = Vlaad158mConfig(backbone=str(tmp_path / "clip"))
    changes = {"student": "vlaad_158m", "network": network, "image_size": 0, "batch_size": 10**7}
    with pytest.raises(UserError, match="lower --batch-size"):
        train(config(dataset, tmp_path / "out", **changes))


def test_a_picture_that_does_not_decode_is_the_users_error_not_a_stack_of_rays(ray_local, dataset, tmp_path):
    data, _ = synthetic.write_dataset(tmp_path, 2, steps=4)
    path = sorted((data / "episodes").iterdir())[0]
    table = pq.read_table(path)
    column = table.schema.get_field_index("wrist")
    broken = table.set_column(column, "wrist", [[b"not a picture"] * len(table)])
    pq.write_table(broken.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(UserError, match="an image does not decode") as raised:
        train(config((data, tmp_path / "annotations"), tmp_path / "out"))
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_disk_that_fills_up_under_ray_trains_checkpoints_is_one_line():
    """As Ray Train reports it: the error of the worker that copied a checkpoint to OUT/ray."""
    failure = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    said = str(workers.users_error(WorkerGroupError("…", {0: failure}), Path("out")))
    assert said == "cannot write out/ray: No space left on device; make room, then rerun the same command"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "needs --annotations"),
        ({"image_size": 100}, "multiple of 16"),
        ({"objective": "auxiliary", "annotations": None}, "--objective auxiliary needs --annotations"),
        ({"student": "vlaad_158m"}, "--student vlaad_158m needs --backbone"),
        ({"network": Vlaad158mConfig("random")}, "student small takes settings of NoSettings"),
        ({"method": BothConfig(direction_weight=0.0)}, "objective dual_path takes settings of DualPathConfig"),
        ({"objective": "both", "method": BothConfig(direction_weight=0.0)}, "--direction-weight must be above 0"),
        ({"student": "vlaad_158m", "network": Vlaad158mConfig("random", lora_rank=0)}, "--lora-rank must be 1 or more"),
        ({"student": "vlaad_158m", "network": Vlaad158mConfig("/nowhere")}, "--backbone /nowhere: neither a directory"),
        ({"trackers": ("tensorbored",)}, "unknown tracker 'tensorbored'; choose one of jsonl, tensorboard"),
        ({"student": "smal"}, "unknown student 'smal'; choose one of small, vlaad_158m"),
        ({"objective": "dual"}, "unknown objective 'dual'; choose one of dual_path, auxiliary"),
        ({"epochs": 0}, "--epochs must be 1 or more"),
        ({"validation_fraction": 1.0}, "--validation-fraction"),
        ({"data": Path("nowhere")}, "not a directory"),
    ],
)
def test_wrong_settings_are_said_in_one_line_before_ray_starts(dataset, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config(dataset, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_killed_run_continues_where_its_last_checkpoint_was(ray_local, tmp_path):
    """The real thing: SIGKILL on the job's process, the same command again. (Equal weights: test_students.)"""
    small_dataset = synthetic.write_dataset(tmp_path, 8)
    settings = config(small_dataset, tmp_path / "out", epochs=6)
    command = [
        sys.executable,
        "jobs/train.py",
        "--data",
        str(settings.data),
        "--annotations",
        str(settings.annotations),
    ]
    command += [
        "--out",
        str(settings.out),
        "--epochs",
        "6",
        "--batch-size",
        "32",
        "--chunk",
        "1",
        "--image-size",
        "32",
    ]
    command += ["--precision", "fp32", "--validation-fraction", "0.2", "--workers", "1"]
    address = ray.get_runtime_context().gcs_address
    snapshot = settings.out / "ray" / "checkpoint_manager_snapshot.json"
    job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_ADDRESS": address})
    deadline = time.monotonic() + 300
    while not snapshot.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # waits for the first checkpoint, not for a time
    job.kill()
    assert job.wait() == -signal.SIGKILL, "killed before it ended"
    assert not (settings.out / "summary.json").exists()
    before = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]

    train(settings)
    after = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in after] == list(range(1, 7))
    assert after[0] == before[0], "the first epoch was trained once"


def test_tensorboard_reads_every_number_of_every_epoch_and_nothing_twice_after_a_resume(tmp_path):
    """Read back from the files' own format: records of length, checksum, event. The second log is a resumed run's."""
    (tracker,) = find_trackers(["tensorboard"])[1:]
    epochs = [
        {"epoch": epoch, "lr": 0.1, "train": {"loss": 1 / epoch, "near_by_phase": {"grasping": 0.5}}, "validation": {}}
        for epoch in (1, 2, 3)
    ]
    log = tracker.open(tmp_path, [])
    log(epochs[0]), log({**epochs[1], "lr": 0.9})  # killed before it had a checkpoint of the second
    log = tracker.open(tmp_path, epochs[:1])
    log(epochs[1]), log(epochs[2])
    found: dict[str, dict[int, float]] = {}
    for event in events(tmp_path / "tensorboard"):
        if event.session_log.status == SessionLog.START:
            for of in found.values():
                for step in [step for step in of if step >= event.step]:
                    del of[step]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    assert found["train/loss"] == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3})
    assert found["train/near_by_phase/grasping"] == {1: 0.5, 2: 0.5, 3: 0.5}
    assert found["lr"] == pytest.approx({1: 0.1, 2: 0.1, 3: 0.1})


def events(folder: Path) -> Iterator[Event]:
    """Of TensorBoard's files, oldest first. Raises AssertionError for a checksum that is wrong."""
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            content, (checksum,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert masked_crc32c(content) == checksum
            yield Event.FromString(content)
            data = data[16 + length :]
