"""The audit over stored episodes: what it counts, says and writes, and that it never harms the dataset."""

import functools
from dataclasses import replace

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest

from vlaad_ray import store
from vlaad_ray.configs import AuditConfig, EnvConfig, FleetConfig, TeacherNoiseConfig, UserError
from vlaad_ray.experiments.teacher_audit import run_audit
from vlaad_ray.quality.measure import audit_episode
from vlaad_ray.quality.stage import audit
from vlaad_ray.quality.summary import summarise
from vlaad_ray.runtime.over_episodes import try_episode
from vlaad_ray.summaries import AuditedCounts, AuditSummary


def episode(number, flips=()):
    """60 steps with pictures: closed from 20 to 45, with single flips at the given steps."""
    made = fakes.episode(number, steps=60, image_every=20)
    actions = made.actions.copy()
    actions[:, 6] = np.where((np.arange(60) >= 20) & (np.arange(60) < 45), 1, -1)
    actions[list(flips), 6] *= -1
    return replace(made, actions=actions, executed=actions)


@pytest.fixture
def dataset(tmp_path):
    """Four episodes, with 0, 1, 2 and 3 flips: 6 of 240 steps, all within the closing but one."""
    for number, flips in enumerate([(), (30,), (30, 36), (5, 30, 36)]):
        store.write_episode(tmp_path / "data", episode(number, flips), {"render": "fast"})
    return tmp_path / "data"


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_audit_counts_names_the_corrupt_file_and_leaves_the_dataset_alone(dataset, ray_local, tmp_path):
    (dataset / "episodes" / "zz-torn.parquet").write_bytes(store.list_episodes(dataset)[0].read_bytes()[:-300])
    before = contents(dataset)
    config = AuditConfig(data=dataset, out=tmp_path / "out")
    summary = run_audit(config)
    assert summary.episodes == AuditedCounts(audited=4, failed=0, corrupt=1)
    assert "zz-torn.parquet is corrupt" in summary.errors[0]
    assert any("zz-torn" in line for line in summary.verdict)
    assert summary.frames == 240
    assert summary.self_revoked == 6 / 240
    assert summary.reversals_per_240 == 4 * 2 + 6 * 2
    assert summary.reversals_per_240_if_repaired == 4 * 2
    assert summary.bursts == {"1": 6}
    assert summary.suites["libero_object"].self_revoked == 6 / 240
    for grouping in ("phases", "stated_phases", "tasks"):
        assert sum(noise.frames for noise in getattr(summary, grouping).values()) == 240
    assert sum(noise.share for noise in summary.phases.values()) == pytest.approx(1)
    assert store.read_summary(config.out, AuditSummary) == summary
    assert "repair" not in store.read_json(config.out / "summary.json")
    lines = store.read_json(config.out / "episodes.json")
    assert [round(60 * line["self_revoked"]) for line in lines] == [0, 1, 2, 3]
    html = (config.out / "noise.html").read_text()
    assert "self-revoking" in html and html.count("<circle") >= 3  # the worst episode's flips
    assert contents(dataset) == before


def test_a_repaired_copy_differs_in_the_flips_alone_and_says_so(dataset, ray_local, tmp_path):
    before = contents(dataset)
    config = AuditConfig(data=dataset, out=tmp_path / "out", repair=tmp_path / "steady")
    summary = audit(config, store.list_episodes(dataset))
    again = audit(config, store.list_episodes(dataset))  # the same command once more is no mixture
    assert again.repair == summary.repair
    assert (summary.repair.episodes, summary.repair.episodes_changed, summary.repair.steps_changed) == (4, 3, 6)
    assert store.read_json(tmp_path / "steady" / "summary.json")["steps_changed"] == 6
    assert contents(dataset) == before
    for path in store.list_episodes(dataset):
        copy = tmp_path / "steady" / "episodes" / path.name
        was, now = store.read_metadata(path), store.read_metadata(copy)
        assert now["repaired"]["from"] == was["content_hash"]
        changed = now["repaired"]["gripper_steps"]
        assert (now["content_hash"] == was["content_hash"]) == (changed == 0)
        a, b = pq.read_table(path), pq.read_table(copy)
        for column in set(a.column_names) - {"action"}:
            assert a[column].to_pylist() == b[column].to_pylist(), column  # pictures are not encoded a second time
        old, new = store.read_episode(path), store.read_episode(copy)
        assert (old.actions != new.actions).sum() == changed
        np.testing.assert_array_equal(new.actions, episode(int(path.stem.split("-")[2][1:])).actions)
    clean = audit(AuditConfig(data=tmp_path / "steady", out=tmp_path / "after"), store.list_episodes(config.repair))
    assert clean.self_revoked == 0


def test_outputs_never_land_in_a_dataset(dataset, tmp_path):
    """summary.json of the audit would overwrite that of the collection; a repair must not mix two datasets."""
    paths = store.list_episodes(dataset)
    with pytest.raises(UserError, match=r"--out .* is also --data"):
        audit(AuditConfig(data=dataset, out=dataset), paths)
    with pytest.raises(UserError, match=r"--repair .* is also the dataset"):
        audit(AuditConfig(data=dataset, out=tmp_path / "out", repair=dataset), paths)
    store.write_episode(tmp_path / "other", fakes.episode(77), {})
    with pytest.raises(UserError, match="already holds 1 episodes that are not in the dataset"):
        audit(AuditConfig(data=dataset, out=tmp_path / "out", repair=tmp_path / "other"), paths)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_one_readable_file_is_an_error(ray_local, tmp_path):
    path = store.write_episode(tmp_path / "data", fakes.episode(), {})
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="none of the 1 episode files can be read"):
        audit(AuditConfig(data=tmp_path / "data", out=tmp_path / "out"), [path])


def verdict_on(flips, tmp_path):
    """What is said of episodes with these flips, without Ray."""
    records = []
    for number, steps in enumerate(flips):
        path = store.write_episode(tmp_path, episode(number, steps), {})
        records.append(try_episode(path, functools.partial(audit_episode, longest=3, repair=None)))
    return " ".join(summarise(records, AuditConfig(out=tmp_path, data=tmp_path)).verdict)


def test_the_verdict_advises_what_helps(tmp_path):
    """Leaving out a few bad episodes is better than a repair; but useless where the noise is everywhere."""
    assert "clean, nothing to repair" in verdict_on([()] * 20, tmp_path / "clean")
    bad = (24, 28, 32, 36, 40)
    assert "Leave out the 2 of 20 episodes above 0.0 %" in verdict_on([()] * 18 + [bad] * 2, tmp_path / "few")
    everywhere = verdict_on([bad] * 20, tmp_path / "all")
    assert "8.3 % of gripper targets are self-revoking" in everywhere
    assert "Repair it" in everywhere and "would still leave 8.3 %" in everywhere
    assert "Repair it" in verdict_on([bad], tmp_path / "one")


def test_a_teacher_is_audited_live_with_its_failures_and_only_by_its_own_episodes(ray_local, tmp_path):
    """What an earlier audit with other noise left in --out must not be counted in."""
    store.write_episode(tmp_path / "data", episode(0, (30,)), {})
    config = AuditConfig(
        out=tmp_path,
        teacher="scripted",
        tasks="0",
        episodes=2,
        teacher_noise=TeacherNoiseConfig(flip_rate=0.1),
        env=EnvConfig(image_size=32),
        fleet=FleetConfig(actors=1),
    )
    summary = run_audit(config)
    assert summary.source == "teacher scripted"
    assert summary.episodes.audited == 2
    assert summary.injected_flip_rate == pytest.approx(0.1)
    assert 0.04 < summary.self_revoked < 0.16
    assert (tmp_path / "noise.html").exists()
