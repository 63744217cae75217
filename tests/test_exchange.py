"""Datasets of others: what is written for LeRobot and read back, killed, resumed, or of another robot; bad inputs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reach_data
import s3_server
import synthetic
from PIL import Image

from vlaad_ray import store
from vlaad_ray.annotate import annotate
from vlaad_ray.configs import (
    AnnotateConfig,
    ExportDatasetConfig,
    ImportDatasetConfig,
    LeRobotLayout,
    LeRobotReading,
    TrainConfig,
    UserError,
)
from vlaad_ray.evaluate.stage import check_training
from vlaad_ray.exchange.bring import import_dataset
from vlaad_ray.exchange.export import export_dataset
from vlaad_ray.exchange.lerobot import export, source, stats
from vlaad_ray.exchange.lerobot.pieces import Job, Part
from vlaad_ray.files import descendants
from vlaad_ray.train import train

EPISODES, STEPS, A_FILE = 5, 14, 2
VIDEO_ERROR = 13
"""Mean error of a pixel, of 255: H.264 at crf 18 halves the colours' resolution, and the synthetic pictures are noise
in all three of them: the worst that can be. One picture off is 21."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return synthetic.write_dataset(tmp_path_factory.mktemp("ours"), EPISODES, STEPS)


def to_lerobot(data: tuple[Path, Path], out: Path, **layout: Any) -> ExportDatasetConfig:
    return ExportDatasetConfig(
        data[0], out, annotations=data[1], layout=LeRobotLayout(episodes_per_file=A_FILE, **layout)
    )


@pytest.fixture(scope="module")
def exported(ray_local: None, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `video` and `image`."""
    root = tmp_path_factory.mktemp("lerobot")
    export_dataset(to_lerobot(data, root / "video"))
    export_dataset(to_lerobot(data, root / "image", pictures="image", executed=True))
    return root


def frames_of(root: Path) -> pa.Table:
    """All rows, as plain pyarrow reads them."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((root / "data").glob("*/*.parquet"))])


def episodes_of(root: Path) -> list[dict[str, Any]]:
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_is_written_has_the_formats_facts(exported: Path, data: tuple[Path, Path], kind: str) -> None:
    """Read without a line of ours: LeRobot's loader adds up these very numbers."""
    root = exported / kind
    info = json.loads((root / "meta/info.json").read_text())
    rows, table = episodes_of(root), frames_of(root)
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 20, "panda")
    assert info["splits"] == {"train": f"0:{EPISODES}"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (EPISODES, EPISODES * STEPS, 2)
    assert {key for key, of in info["features"].items() if of["dtype"] == kind} == {
        "observation.images.image",
        "observation.images.image2",
    }
    assert info["features"]["observation.state"]["shape"] == [8]
    assert info["features"]["action"]["shape"] == [7]
    assert {key for key, of in info["features"].items() if of["dtype"] != "video"} == set(table.column_names)
    assert table["index"].to_pylist() == list(range(EPISODES * STEPS))
    assert table["episode_index"].to_pylist() == [number for number in range(EPISODES) for _ in range(STEPS)]
    seconds = np.tile(np.arange(STEPS) / 20, EPISODES).astype(np.float32)
    np.testing.assert_array_equal(table["timestamp"].to_numpy(), seconds)
    tasks = pq.read_table(root / "meta/tasks.parquet").to_pandas()
    assert tasks.index.name == "task" and tasks.loc["pick up the red cup", "task_index"] == 1
    for number, (row, path) in enumerate(zip(rows, store.list_episodes(data[0]), strict=True)):
        episode = store.read_episode(path, images=False)
        mine = table.filter(pa.compute.equal(table["episode_index"], number))
        np.testing.assert_array_equal(np.stack(mine["action"].to_pylist()).astype(np.float32), episode.actions)
        np.testing.assert_array_equal(
            np.stack(mine["observation.state"].to_pylist()).astype(np.float32), episode.proprio
        )
        assert set(mine["task_index"].to_pylist()) == {tasks.loc[episode.instruction, "task_index"]}
        assert row["tasks"] == [episode.instruction] and row["length"] == STEPS
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (number * STEPS, (number + 1) * STEPS)
        assert (row["data/chunk_index"], row["data/file_index"]) == (0, number // A_FILE)
        if kind == "video":
            start = row["videos/observation.images.image/from_timestamp"]
            assert start == pytest.approx((number % A_FILE) * STEPS / 20)
        np.testing.assert_allclose(row["stats/action/mean"], episode.actions.mean(axis=0), atol=1e-6)
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert file.num_row_groups == A_FILE, "a loader reads one episode without the others"


def test_pictures_are_as_liberos_datasets_have_them_and_phases_stand_beside_them(
    exported: Path, data: tuple[Path, Path]
) -> None:
    """Students of those datasets would see everything on the wrong side."""
    table = frames_of(exported / "image")
    episode = store.read_episode(store.list_episodes(data[0])[0])
    for step, value in enumerate(table["observation.images.image2"].to_pylist()[:STEPS]):
        shown = np.asarray(Image.open(io.BytesIO(value["bytes"])))
        np.testing.assert_array_equal(shown[:, ::-1], episode.images["wrist"][step])
    labels = store.read_annotation(store.list_annotations(data[1])[0])
    for name, values in (("phase", labels.phases), ("direction", labels.directions)):
        assert tuple(table[f"annotation.{name}"].to_pylist()[:STEPS]) == values


def test_statistics_are_those_of_all_frames(exported: Path, data: tuple[Path, Path]) -> None:
    found = json.loads((exported / "image/meta/stats.json").read_text())
    every = [store.read_episode(path) for path in store.list_episodes(data[0])]
    actions = np.concatenate([episode.actions for episode in every])
    np.testing.assert_allclose(found["action"]["mean"], actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["action"]["std"], actions.std(axis=0), atol=1e-6)
    np.testing.assert_array_equal(np.float32(found["action"]["max"]), actions.max(axis=0))
    assert found["action"]["count"] == [len(actions)]
    seen = np.concatenate([np.stack(episode.images["agentview"]) for episode in every]) / 255
    image = found["observation.images.image"]
    assert np.shape(image["mean"]) == np.shape(image["q99"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(image["mean"]), seen.mean(axis=(0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(np.ravel(image["std"]), seen.std(axis=(0, 1, 2)), atol=1e-9)
    assert (np.ravel(image["min"]), np.ravel(image["max"]))[1].tolist() == seen.max(axis=(0, 1, 2)).tolist()
    middle = np.median(seen[:STEPS].reshape(-1, 3), axis=0)
    of_first = np.ravel(episodes_of(exported / "image")[0]["stats/observation.images.image/q50"])
    np.testing.assert_allclose(of_first, middle, atol=0.5 / 255)  # between two values numpy takes the middle
    assert stats.sampled(10) == list(range(10)) and len(stats.sampled(2000)) == 299


def test_a_round_trip_through_pictures_is_exact(exported: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    summary = import_dataset(ImportDatasetConfig(exported / "image", tmp_path, pictures="png"))
    assert (summary.episodes, summary.failed, summary.success_unknown) == (EPISODES, 0, 0)
    assert summary.annotatable and summary.cameras == ("agentview", "wrist")
    for ours, back in pairs(data[0], tmp_path):
        same = {"key": ours.key, "phases": ours.phases, "images": ours.images}
        for name in ("actions", "executed", "proprio"):
            np.testing.assert_array_equal(getattr(back, name), getattr(ours, name))
            same[name] = getattr(ours, name)
        for camera, images in ours.images.items():
            np.testing.assert_array_equal(np.stack(back.images[camera]), np.stack(images))
        assert back.phases[0] == "approaching", "of the column annotation.phase"
        assert dataclasses.replace(back.key, config_hash=ours.key.config_hash) == ours.key
        assert back.key.config_hash != ours.key.config_hash, "it is another file: its phases are not the teacher's"
        assert dataclasses.replace(back, **same) == ours
    assert store.read_metadata(store.list_episodes(tmp_path)[0])["render"] == "fast"


def test_a_round_trip_through_video_is_exact_but_for_the_codec(
    exported: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also the second episode of a file, whose pictures begin in the middle of the video."""
    import_dataset(ImportDatasetConfig(exported / "video", tmp_path))
    for ours, back in pairs(data[0], tmp_path):
        np.testing.assert_array_equal(back.actions, ours.actions)
        np.testing.assert_array_equal(back.proprio, ours.proprio)
        for camera, images in ours.images.items():
            error = np.abs(np.stack(back.images[camera]).astype(int) - np.stack(images)).mean(axis=(1, 2, 3))
            later = np.abs(np.stack(back.images[camera])[1:].astype(int) - np.stack(images)[:-1]).mean()
            assert error.max() < VIDEO_ERROR < later, "one picture off would be far more"


def pairs(one: Path, other: Path) -> list[tuple[Any, Any]]:
    """Episodes of the same start."""

    def by_start(root: Path) -> dict[Any, Path]:
        paths = store.list_episodes(root)
        return {store.read_key(store.read_metadata(path)["key"]).init: Path(path) for path in paths}

    first, second = by_start(one), by_start(other)
    assert first.keys() == second.keys()
    return [(store.read_episode(first[start]), store.read_episode(second[start])) for start in first]


def test_an_imported_dataset_is_annotated_and_trained_on_without_a_simulator(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libero", None)
    data, notes = tmp_path / "data", tmp_path / "notes"
    import_dataset(ImportDatasetConfig(exported / "video", data))
    again = import_dataset(ImportDatasetConfig(exported / "video", data))
    assert again.imported_before == again.episodes == EPISODES
    assert annotate(AnnotateConfig(data, notes)).episodes.annotated == EPISODES
    small = {"epochs": 1, "batch_size": 16, "chunk": 1, "image_size": 32, "precision": "fp32", "workers": 1}
    small |= {"cpus_per_worker": 1, "validation_fraction": 0.4}
    summary = train(TrainConfig(data, tmp_path / "run", annotations=notes, **small))
    assert (summary.episodes.train, summary.episodes.validation) == (3, 2)
    assert 0 <= summary.validation["near"] <= 1, "open loop, on the episodes held out"
    with pytest.raises(UserError, match="holds 5 episodes of another source or other settings"):
        import_dataset(ImportDatasetConfig(exported / "image", data))


KILLED = """
import os, signal, sys
from pathlib import Path
from vlaad_ray.configs import ExportDatasetConfig, LeRobotLayout
from vlaad_ray.exchange.lerobot import export
read, seen = export.read, []
def dies(part, job):
    seen.append(part)
    if len(seen) == 4:  # the second of the second piece's episodes
        os.kill(os.getpid(), signal.SIGKILL)
    return read(part, job)
export.read = dies
export.over_pieces = lambda pieces, work, title: map(work, pieces)
data, notes, out = map(Path, sys.argv[1:])
layout = LeRobotLayout(episodes_per_file=2)
export.write(ExportDatasetConfig(data, out, annotations=notes, layout=layout), layout)
"""


def test_a_killed_export_is_no_dataset_and_is_resumed(
    ray_local: None, exported: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(data[0]), str(data[1]), str(out)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (out / "meta/info.json").exists()
    assert [path.name for path in (out / "data/chunk-000").iterdir() if path.name[0] != "."] == ["file-000.parquet"]
    with pytest.raises(UserError, match=r"meta/info.json does not exist; give the directory of a LeRobot dataset"):
        import_dataset(ImportDatasetConfig(out, tmp_path / "data"))
    summary = export_dataset(to_lerobot(data, out))
    assert summary.written_before == A_FILE
    assert frames_of(out).equals(frames_of(exported / "video"))
    mine = {path.relative_to(out) for folder in ("data", "meta", "videos") for path in (out / folder).rglob("[!.]*")}
    whole = exported / "video"
    assert mine == {
        path.relative_to(whole) for folder in ("data", "meta", "videos") for path in (whole / folder).rglob("*")
    }


def test_an_export_with_other_settings_leaves_nothing_of_the_former(
    ray_local: None, exported: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    """A loader takes every file of data/ for part of the dataset."""
    out = tmp_path / "out"
    shutil.copytree(exported / "video", out)
    (out / "videos/observation.images.image/chunk-000/file-001.mp4").unlink()
    assert export_dataset(to_lerobot(data, out)).written_before == EPISODES - A_FILE, "the one without its video"
    layout = LeRobotLayout(pictures="image", episodes_per_file=EPISODES)
    summary = export_dataset(ExportDatasetConfig(data[0], out, layout=layout))
    assert summary.written_before == 0
    assert len(frames_of(out)) == EPISODES * STEPS and "annotation.phase" not in frames_of(out).column_names
    assert not list((out / "videos").rglob("*.mp4"))


def test_another_robot_keeps_its_sizes_rate_and_camera(ray_local: None, tmp_path: Path) -> None:
    ours = reach_data.write(tmp_path / "ours")
    export_dataset(ExportDatasetConfig(ours, tmp_path / "lerobot", layout=LeRobotLayout(pictures="image")))
    summary = import_dataset(ImportDatasetConfig(tmp_path / "lerobot", tmp_path / "back", pictures="png"))
    assert (summary.action_dim, summary.proprio_dim, summary.rate_hz) == (2, 4, 10)
    assert summary.cameras == ("top",) and not summary.annotatable
    assert any("the rules cannot annotate this robot" in note for note in summary.notes)
    for one, back in pairs(ours, tmp_path / "back"):
        assert back.embodiment == one.embodiment
        np.testing.assert_array_equal(back.images["top"][3], one.images["top"][3])


def test_both_ways_through_an_object_store(
    ray_local: None, s3: s3_server.Server, exported: Path, data: tuple[Path, Path]
) -> None:
    bucket = s3.bucket("exchange")
    export_dataset(to_lerobot(data, bucket / "lerobot"))
    written = {str(path).removeprefix(f"{bucket / 'lerobot'}/") for path in descendants(bucket / "lerobot", "")}
    assert written == {str(path.relative_to(exported / "video")) for path in descendants(exported / "video", "")}
    summary = import_dataset(ImportDatasetConfig(bucket / "lerobot", bucket / "data"))
    assert summary.episodes == EPISODES
    first = {store.read_metadata(path)["instruction"] for path in store.list_episodes(bucket / "data")}
    assert first == set(synthetic.INSTRUCTIONS)


def test_evaluation_says_that_a_student_learnt_from_starts_that_nobody_knows() -> None:
    trained_on = {"init_states": {"none": {"0": ["i0000"]}}}
    assert ["imported episodes" in warning for warning in check_training([], trained_on)] == [True]
    assert check_training([], {"init_states": {"libero_object": {"0": ["s0000", "p0001"]}}}) == []


def change(root: Path, **values: Any) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, **values}))


def with_action(root: Path, value: float) -> None:
    """The first file's first action gets `value`."""
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = np.stack(table["action"].to_pylist()).astype(np.float32)
    actions[3, 0] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 7)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)


BROKEN = {
    "no dataset": (lambda root: shutil.rmtree(root / "meta"), r"info.json does not exist; give the directory of a Le"),
    "another json": (lambda root: (root / "meta/info.json").write_text("{}"), "it has no codebase_version"),
    "older": (lambda root: change(root, codebase_version="v2.1"), r"LeRobot dataset v2.1; v3 is read here: convert it"),
    "no video": (
        lambda root: (root / "videos/observation.images.image2/chunk-000/file-001.mp4").unlink(),
        r"image2/chunk-000/file-001.mp4 is missing, and episodes lie in it",
    ),
    "no data": (lambda root: (root / "data/chunk-000/file-002.parquet").unlink(), "file-002.parquet is missing"),
    "half of the tasks": (
        lambda root: (root / "meta/tasks.parquet").write_bytes((root / "meta/tasks.parquet").read_bytes()[:200]),
        "tasks.parquet",
    ),
    "no tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet is missing; get the dataset"),
    "no episodes": (
        lambda root: shutil.rmtree(root / "meta/episodes"),
        "tells of 0 episodes where meta/info.json",
    ),
    "no action": (lambda root: change(root, features={}), "has no feature 'action'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_dataset_is_one_line_before_anything_is_written(exported: Path, tmp_path: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    shutil.copytree(exported / "video", tmp_path / "lerobot")
    spoil(tmp_path / "lerobot")
    with pytest.raises(UserError, match=message) as error:
        import_dataset(ImportDatasetConfig(tmp_path / "lerobot", tmp_path / "data"))
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"episode 0: action at step 3 is not finite; repair the source$"),
        (3.5, r"episode 0: an action reaches 3.5, and students answer within \[-1, 1\]; give --rescale"),
    ],
)
def test_an_unusable_action_in_a_worker_is_one_line(
    ray_local: None, exported: Path, tmp_path: Path, value: float, message: str
) -> None:
    shutil.copytree(exported / "image", tmp_path / "lerobot")
    with_action(tmp_path / "lerobot", value)
    with pytest.raises(UserError, match=message) as error:
        import_dataset(ImportDatasetConfig(tmp_path / "lerobot", tmp_path / "data"))
    assert "\n" not in str(error.value)


def test_a_video_that_ends_early_is_one_line(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "video", tmp_path / "lerobot")
    videos = tmp_path / "lerobot/videos/observation.images.image/chunk-000"
    shutil.copy(videos / "file-002.mp4", videos / "file-000.mp4")  # of one episode, where two lie
    plan = source.plan(ImportDatasetConfig(tmp_path / "lerobot", tmp_path / "data"), LeRobotReading())
    with pytest.raises(UserError, match=r"episode 1: file-000.mp4 of observation.images.image: 0 of 14 frames"):
        list(plan.read(plan.items[0]))


def test_what_the_format_cannot_hold_is_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    """Pictures of every second step would make a film of half the rate, whose actions are not those between."""
    episode = synthetic.episode(0, steps=6)
    gaps = {
        camera: tuple(image if step % 2 == 0 else None for step, image in enumerate(images))
        for camera, images in episode.images.items()
    }
    rare = dataclasses.replace(episode, images=gaps)
    acts = dataclasses.replace(episode, taught=np.arange(6) > 2)
    sizes = {"agentview": (32, 32), "wrist": (32, 32)}
    job = Job(tmp_path / "out", LeRobotLayout(), episode.embodiment, {}, sizes, ())
    for name, each, message in (
        ("rare", rare, "no picture of agentview at step 1; LeRobot's format needs one at every step"),
        ("mixed", acts, "a student acts in some of its steps"),
    ):
        path = store.write_episode(tmp_path / name, each, {"render": "fast"})
        with pytest.raises(UserError, match=re.escape(message)):
            export.read(Part(path, 6, "", None, ""), job)
    with pytest.raises(UserError, match="--language needs --annotations"):
        export_dataset(ExportDatasetConfig(data[0], tmp_path / "out", layout=LeRobotLayout(language=True)))


@pytest.mark.parametrize(
    ("wish", "message"),
    [("front=agentview", "OLD being one of image, image2"), ("image2=agentview", "two cameras would have one name")],
)
def test_a_wrong_camera_is_one_line(exported: Path, tmp_path: Path, wish: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_dataset(ImportDatasetConfig(exported / "image", tmp_path / "data", cameras=(wish,)))
