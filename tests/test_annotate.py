import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlaad_ray import annotate, store
from vlaad_ray.configs import AnnotateConfig, UserError
from vlaad_ray.semantics import phases
from vlaad_ray.summaries import AnnotatedCounts, AnnotateSummary
from vlaad_ray.types import Episode, EpisodeKey, InitState

pytestmark = pytest.mark.usefixtures("ray_local")


def episode(index: int) -> Episode:
    """A hand that goes down, closes, rises, moves left, opens. It states its phases, wrongly for 10 of 100 frames."""
    steps = 100
    proprio = np.zeros((steps, 8), np.float32)
    proprio[:, 2] = np.interp(np.arange(steps), [0, 25, 35, 55, 100], [0.3, 0.05, 0.05, 0.25, 0.25])
    proprio[:, 1] = np.interp(np.arange(steps), [55, 85], [0, 0.3])
    gripper = np.where((np.arange(steps) >= 26) & (np.arange(steps) < 90), 1.0, -1.0)
    proprio[:, 6] = np.interp(np.arange(steps), [26, 32, 90, 94], [0.04, 0.02, 0.02, 0.04])
    proprio[:, 7] = -proprio[:, 6]
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 6] = gripper
    instruction = "pick up the milk and place it in the basket"
    stated = list(phases.classify(proprio, gripper, instruction))
    stated[:10] = ["regrasping"] * 10
    key = EpisodeKey("libero_object", 7, InitState("stored", index), "scripted", 0, "00000000")
    return Episode(key, instruction, proprio, actions, actions, tuple(stated), {}, 95, True, 280)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for index in range(3):
        store.write_episode(tmp_path / "data", episode(index), {})
    return tmp_path / "data"


def test_every_frame_is_annotated_and_a_rerun_repeats_nothing(dataset, tmp_path):
    config = AnnotateConfig(data=dataset, out=tmp_path / "labels")
    first = annotate.annotate(config)
    written = {path: path.stat().st_mtime_ns for path in store.list_annotations(config.out)}
    second = annotate.annotate(config)
    assert first.episodes == AnnotatedCounts(annotated=3, skipped=0, corrupt=0)
    assert second.episodes == AnnotatedCounts(annotated=0, skipped=3, corrupt=0)
    assert written == {path: path.stat().st_mtime_ns for path in store.list_annotations(config.out)}
    assert replace(first, episodes=second.episodes, seconds=second.seconds) == second
    assert store.read_summary(config.out, AnnotateSummary) == second
    assert first.frames == sum(first.frames_per_phase.values()) == 300
    assert first.agreement.rate == first.agreement.suites["libero_object"].rate == 0.9
    assert first.agreement.confusion["regrasping"]["approaching"] == 30
    labels = store.read_annotation(next(iter(written)))
    assert len(labels.descriptions) == 100
    assert "transporting: carrying the milk, moving left toward the basket" in labels.descriptions


def test_another_taxonomy_or_other_data_is_annotated_anew(dataset, tmp_path):
    """Labels of nine phases must never pass for thirteen, nor those of a replaced episode for the new one's."""
    out = tmp_path / "labels"
    annotate.annotate(AnnotateConfig(data=dataset, out=out))
    finer = annotate.annotate(AnnotateConfig(data=dataset, out=out, phases=13))
    assert finer.episodes.annotated == 3
    assert store.annotation_provenance(store.list_annotations(out)[0])["taxonomy"] == 13
    other = episode(0)
    other.proprio[:, 0] += 0.1
    store.write_episode(dataset, other, {})
    assert annotate.annotate(AnnotateConfig(data=dataset, out=out, phases=13)).episodes.annotated == 1


def test_a_torn_annotation_is_made_anew(dataset, tmp_path):
    config = AnnotateConfig(data=dataset, out=tmp_path / "labels")
    annotate.annotate(config)
    path = store.list_annotations(config.out)[0]
    path.write_bytes(path.read_bytes()[:100])
    assert annotate.annotate(config).episodes == AnnotatedCounts(annotated=1, skipped=2, corrupt=0)
    assert len(store.read_annotation(path).phases) == 100


def test_corrupt_episodes_are_named_and_the_others_annotated(dataset, tmp_path):
    """One truncated file must cost that file only, must not pass unnoticed, and must not be touched."""
    bad = store.list_episodes(dataset)[1]
    bad.write_bytes(bad.read_bytes()[:-200])
    before = {path: path.read_bytes() for path in store.list_episodes(dataset)}
    config = AnnotateConfig(data=dataset, out=tmp_path / "labels")
    with pytest.raises(UserError, match=bad.name) as error:
        annotate.annotate(config)
    assert "\n" not in str(error.value)
    assert len(store.list_annotations(config.out)) == 2
    assert store.read_json(config.out / "summary.json")["episodes"] == {"annotated": 2, "skipped": 0, "corrupt": 1}
    assert before == {path: path.read_bytes() for path in store.list_episodes(dataset)}


def test_the_job_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for directory in ("empty", "missing"):
        done = subprocess.run(
            [sys.executable, "jobs/annotate.py", "--data", str(tmp_path / directory), "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert directory in done.stderr
    assert not (tmp_path / "out").exists()
