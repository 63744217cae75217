"""Storage: what is written comes back, and what is damaged is named."""

import dataclasses
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import episode

from vlaad_ray import store
from vlaad_ray.configs import UserError
from vlaad_ray.stats import success_of
from vlaad_ray.summaries import EvalSummary, Successes
from vlaad_ray.types import Annotation, Collected, Outcome


@pytest.fixture
def path(tmp_path):
    return store.write_episode(tmp_path, episode(3), {"render": "fast"})


def test_an_episode_comes_back_as_it_was(path):
    wrote, read = episode(3), store.read_episode(path)
    assert read.key == wrote.key
    assert (read.success_step, read.success_final, read.budget) == (wrote.success_step, True, 280)
    for name in ("proprio", "actions", "executed"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wrote, name))
    assert [image is None for image in read.images["wrist"]] == [image is None for image in wrote.images["wrist"]]
    assert read.images["wrist"][0].shape == wrote.images["wrist"][0].shape
    assert store.read_metadata(path)["render"] == "fast"


def test_plain_pyarrow_reads_it_without_our_code(path):
    table = pq.read_table(path)
    assert table.schema.equals(store.EPISODE_SCHEMA)
    assert table["action"].to_pylist()[0] == pytest.approx(episode(3).actions[0].tolist())
    assert table["agentview"][0].as_py().startswith(b"\xff\xd8")  # a JPEG


def test_content_hash_tells_episodes_apart_and_ignores_who_wrote_them(tmp_path):
    def written(name, index, extra):
        return store.read_metadata(store.write_episode(tmp_path / name, episode(index), extra))["content_hash"]

    assert written("a", 1, {"python": "3.11"}) == written("b", 1, {"python": "3.13"})
    assert written("a", 1, {}) != written("a", 2, {})


def test_an_annotation_comes_back_as_it_was(tmp_path):
    wrote = Annotation(
        "name",
        ("idle", "placing"),
        ("still", "down"),
        ("a", "b"),
        np.array([0, 1], np.int32),
        ("rules", "vlm"),
        ("", "cut off"),
    )
    path = store.write_annotation(tmp_path, wrote, {"annotator": "rules", "phases": 9})
    read = store.read_annotation(path)
    assert (read.phases, read.directions, read.flags) == (wrote.phases, wrote.directions, wrote.flags)
    assert read.sources == wrote.sources
    np.testing.assert_array_equal(read.segments, wrote.segments)
    assert store.annotation_provenance(path) == {"annotator": "rules", "phases": 9}


def test_a_truncated_file_is_named_and_left_alone(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (store.read_metadata, store.read_episode):
        with pytest.raises(UserError, match=r"parquet is corrupt .*delete it and rerun"):
            read(path)
    assert path.read_bytes() == data[: len(data) // 2]


def test_a_damaged_image_is_named(path):
    table = pq.read_table(path)
    images = [b"not a jpeg" if value is not None else None for value in table["wrist"].to_pylist()]
    position = table.schema.get_field_index("wrist")
    damaged = table.set_column(position, "wrist", pa.array(images, pa.binary()))
    pq.write_table(damaged.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(UserError, match="an image does not decode"):
        store.read_episode(path)
    assert len(store.read_episode(path, images=False)) == 6


def test_a_foreign_parquet_file_is_refused(tmp_path):
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(UserError, match="not written by vlaad_ray"):
        store.read_episode(path)


def test_another_schema_version_is_refused(path, monkeypatch):
    monkeypatch.setattr(store.parquet, "SCHEMA_VERSION", 99)
    with pytest.raises(UserError, match="schema version 1, this vlaad_ray reads 99"):
        store.read_episode(path)


def test_an_empty_or_missing_dataset_says_how_to_make_one(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"jobs/collect\.py"):
            store.list_episodes(root)


def test_a_writer_that_dies_leaves_nothing_to_read(tmp_path):
    target = tmp_path / "outcomes" / "x.json"
    with pytest.raises(KeyboardInterrupt), store.replacing(target) as temporary:
        temporary.write_text("{")
        raise KeyboardInterrupt
    assert os.listdir(target.parent) == []
    # SIGKILL leaves the temporary file behind; readers pass over it.
    (target.parent / ".x.json.123").write_text("{")
    assert store.read_outcomes(tmp_path, Outcome) == {}


def test_an_evaluation_speaks_only_of_its_own_outcomes(tmp_path):
    """A folder that was used with other settings before must not mix into comparisons and reports."""
    old, new = (Outcome("suite", 0, "s0020", "go", ever, ever, 9, 9, {"gripper_flips": 2}) for ever in (False, True))
    store.write_outcome(tmp_path, "old", old)
    store.write_outcome(tmp_path, "new", new)
    assert store.read_evaluation(tmp_path) == {}  # not finished: no summary yet
    once = success_of([True])
    both = Successes(once, once)
    summary = EvalSummary(
        policy="p", suite="suite", init_states="20", budget=9, success=both, tasks={}, steps_mean=9, episodes=("new",)
    )
    store.write_summary(tmp_path, summary)
    assert store.read_evaluation(tmp_path) == {"new": new}


def test_an_outcome_is_stored_as_it_always_was_and_a_metric_hides_none_of_it(tmp_path):
    """Evaluations of before stay comparable: their metrics lie beside the other facts."""
    before = {"suite": "libero_object", "task": 3, "init": "s0020", "instruction": "go", "success_ever": True}
    before |= {"success_final": False, "steps": 80, "recorded_steps": 100, "gripper_flips": 2, "last_phase": "done"}
    store.write_json(tmp_path / "outcomes" / "before.json", before)
    outcome = store.read_outcomes(tmp_path, Outcome)["before"]
    assert outcome.metrics == {"gripper_flips": 2, "last_phase": "done"}
    path = store.write_outcome(tmp_path, "after", outcome)
    assert list(store.read_json(path).items()) == list(before.items())
    with pytest.raises(ValueError, match="'steps'"):
        store.write_outcome(tmp_path, "hidden", dataclasses.replace(outcome, metrics={"steps": 1}))
    collected = Collected("libero_object", 3, "s0020", True, True, True, True, 100)
    store.write_outcome(tmp_path / "data", "kept", collected)
    assert store.read_outcomes(tmp_path / "data", Collected) == {"kept": collected}
    with pytest.raises(UserError, match=r"after\.json has no 'kept'; delete it and rerun"):
        store.read_outcomes(tmp_path, Collected)
