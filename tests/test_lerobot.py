"""Against LeRobot itself: its loader reads what we write, and we read what its writer writes.

It wants another Python and other versions of torch and numpy than we do, so it is installed into an environment of its
own, once, in the user's cache: some minutes and gigabytes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from vlaad_ray import store
from vlaad_ray.configs import ExportDatasetConfig, ImportDatasetConfig, LeRobotLayout
from vlaad_ray.exchange.bring import import_dataset
from vlaad_ray.exchange.export import export_dataset
from vlaad_ray.types import Episode

RELEASE = "0.6.1"
SIDE = Path(__file__).parent / "elsewhere" / "lerobot_side.py"
EPISODES, STEPS = 5, 22
VIDEO_ERROR = 13
"""Mean error of a pixel, of 255: H.264 at crf 18 halves the colours' resolution, and the synthetic pictures are noise
in all three of them: the worst that can be. One picture off is 21."""
THEIR_VIDEO_ERROR = 4
"""Of their AV1 at crf 30, on smooth pictures. One picture off is 8."""
BIN = 1 / 5000
"""LeRobot's quantiles come from histograms of so many bins."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lerobot() -> list[str]:
    """The command that runs Python where lerobot is. PYTHON312 names a Python 3.12 or later that is not on the path."""
    python = os.environ.get("PYTHON312") or shutil.which("python3.12") or shutil.which("python3.13")
    assert python, f"lerobot {RELEASE} needs Python 3.12; name one: PYTHON312=/path/to/python3.12"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlaad_ray"
    folder = cache / f"lerobot-{RELEASE}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        wanted = f"lerobot[dataset]=={RELEASE}"
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", wanted], check=True)
        (folder / "ready").touch()
    return [str(folder / "bin/python"), str(SIDE)]


def run(command: list[str], *words: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *map(str, words)], check=True, env=environment)


@pytest.mark.parametrize("pictures", ["image", "video"])
def test_lerobots_loader_reads_what_we_write(
    ray_local: None, lerobot: list[str], tmp_path: Path, pictures: Any
) -> None:
    data, notes = synthetic.write_dataset(tmp_path, EPISODES, STEPS)
    layout = LeRobotLayout(pictures=pictures, episodes_per_file=2, language=pictures == "image")
    export_dataset(ExportDatasetConfig(data, tmp_path / "out", annotations=notes, layout=layout))
    run(lerobot, "read", tmp_path / "out", tmp_path / "frames.npz")
    found = np.load(tmp_path / "frames.npz")
    episodes = [store.read_episode(path) for path in store.list_episodes(data)]
    np.testing.assert_array_equal(found["action"], np.concatenate([each.actions for each in episodes]))
    np.testing.assert_array_equal(found["observation.state"], np.concatenate([each.proprio for each in episodes]))
    assert found["task"].tolist() == [each.instruction for each in episodes for _ in range(STEPS)]
    labels = [store.read_annotation(path) for path in store.list_annotations(notes)]
    assert found["annotation.phase"].tolist() == [phase for each in labels for phase in each.phases]
    for camera, key in (("agentview", "observation.images.image"), ("wrist", "observation.images.image2")):
        ours = np.concatenate([np.stack(each.images[camera]) for each in episodes])[:, :, ::-1]
        theirs = 255 * found[key].transpose(0, 2, 3, 1)
        error = np.abs(theirs - ours).mean(axis=(1, 2, 3))
        print(
            f"{pictures} {key}: mean error of a pixel {error.mean():.2f}, of the worst frame {error.max():.2f}, of 255"
        )
        assert error.max() < (1e-4 if pictures == "image" else VIDEO_ERROR)
    for name in ("action", "observation.state"):
        low, high = found[f"stored/{name}/min"], found[f"stored/{name}/max"]
        for key in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(found[f"stored/{name}/{key}"], found[f"computed/{name}/{key}"], atol=1e-5)
        for key in ("q01", "q10", "q50", "q90", "q99"):
            apart = np.abs(found[f"computed/{name}/{key}"] - found[f"stored/{name}/{key}"])
            assert (apart <= 1.01 * BIN * (high - low) + 1e-6).all(), key


def smooth(episode: Episode) -> Episode:
    """With pictures that a codec can hold, 64 pixels wide, each brighter than the one before it."""
    across = np.linspace(0, 60, 64, dtype=np.float32)
    x, y = np.meshgrid(across, across)
    still = np.stack([x, y, 60 - x], axis=2)
    shown = [np.uint8(np.round(still + 8 * (step % 22))) for step in range(len(episode))]
    images = {"agentview": tuple(shown), "wrist": tuple(np.ascontiguousarray(each[::-1]) for each in shown)}
    return dataclasses.replace(episode, images=images)


@pytest.mark.parametrize("pictures", ["image", "video"])
def test_what_lerobots_writer_writes_is_imported(
    ray_local: None, lerobot: list[str], tmp_path: Path, pictures: str
) -> None:
    episodes = [smooth(synthetic.episode(index, steps=STEPS + index)) for index in range(EPISODES)]
    frames = {
        "action": np.concatenate([each.actions for each in episodes]),
        "observation.state": np.concatenate([each.proprio for each in episodes]),
        "episode_index": np.concatenate([np.full(len(each), index) for index, each in enumerate(episodes)]),
        "task": np.array([each.instruction for each in episodes for _ in range(len(each))]),
    }
    for camera, key in (("agentview", "observation.images.image"), ("wrist", "observation.images.image2")):
        frames[key] = np.concatenate([np.stack(each.images[camera]) for each in episodes])[:, :, ::-1]
    np.savez(tmp_path / "frames.npz", **frames)
    run(lerobot, "write", tmp_path / "theirs", tmp_path / "frames.npz", pictures)
    # Synthetic fingers follow no command.
    settings = ImportDatasetConfig(tmp_path / "theirs", tmp_path / "data", pictures="png", gripper_means="plus_closes")
    summary = import_dataset(settings)
    assert (summary.episodes, summary.success_unknown) == (EPISODES, EPISODES)
    assert summary.annotatable and summary.cameras == ("agentview", "wrist")
    paths = store.list_episodes(tmp_path / "data")
    found = {store.read_key(store.read_metadata(path)["key"]).init.index: path for path in paths}
    for index, ours in enumerate(episodes):
        back = store.read_episode(found[index])
        np.testing.assert_array_equal(back.actions, ours.actions)
        np.testing.assert_array_equal(back.proprio, ours.proprio)
        assert back.instruction == ours.instruction and back.success_final
        for camera, images in ours.images.items():
            error = np.abs(np.stack(back.images[camera]).astype(int) - np.stack(images)).mean(axis=(1, 2, 3))
            print(f"{pictures} {camera}, episode {index}: mean error of a pixel {error.mean():.2f} of 255")
            assert error.max() < (1e-4 if pictures == "image" else THEIR_VIDEO_ERROR)
