"""How noisy a dataset's targets are, by phase, task and suite; what to filter; and a repaired copy, when asked for.

The formulas are in `semantics.smoothness`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import ray.data

from vlaad_ray import store
from vlaad_ray.configs import AuditConfig, Location, UserError
from vlaad_ray.quality.measure import audit_episode
from vlaad_ray.quality.summary import episode_line, good_records, summarise
from vlaad_ray.runtime import cluster, record
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.summaries import AuditSummary


def audit(config: AuditConfig, paths: Sequence[Location]) -> AuditSummary:
    """Measure the episode files at `paths`; return (and write) the summary (docs/noise.md).

    Unreadable files are counted and named in the summary. Raises UserError when no file can be read.
    """
    began = time.monotonic()
    record.begin(config.out, config, {"--data": config.data})
    check_places(config, paths)
    record.write_run_record(config.out, config)
    cluster.connect(ray_data=True)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # warns of its progress bars being off
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours instead of one an operator
    work = functools.partial(audit_episode, longest=config.longest, repair=config.repair)
    records = over_episodes(paths, work, "auditing")
    records.sort(key=lambda record: record["path"])
    if all("error" in record for record in records):
        raise UserError(f"none of the {len(records)} episode files can be read; the first: {records[0]['error']}")
    summary = replace(summarise(records, config), seconds=round(time.monotonic() - began, 2))
    store.write_json(config.out / "episodes.json", [episode_line(record) for record in good_records(records)])
    store.write_summary(config.out, summary)
    if config.repair is not None and summary.repair is not None:
        record.write_run_record(config.repair, config)
        store.write_json(config.repair / "summary.json", {**vars(summary.repair), **record.software()})
    return summary


def check_places(config: AuditConfig, paths: Sequence[Location]) -> None:
    """Raises UserError if the repaired copy would land in the dataset itself or mix with other episodes."""
    if config.repair is None:
        return
    for dataset in {path.resolve().parents[1] for path in paths}:
        reads = {"the dataset": dataset, "--out": config.out}
        record.check_place("--repair", config.repair, "AuditConfig", reads, beside=("episodes/[!.]*.parquet",))
    if (config.repair / "episodes").is_dir():
        foreign = {path.name for path in store.list_episodes(config.repair)} - {path.name for path in paths}
        if foreign:
            raise UserError(
                f"--repair {config.repair} already holds {len(foreign)} episodes that are not in the dataset "
                f"(first: {min(foreign)}); choose another directory"
            )
