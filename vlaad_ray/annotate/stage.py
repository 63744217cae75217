"""The stage: every episode of a dataset gets an annotation, one Parquet file each, with Ray Data.

Who annotates is a choice (rules, or a VLM in the rules' phases); what surrounds it is the same for both: resuming,
provenance, corrupt files, the summary.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.data

from vlaad_ray import store
from vlaad_ray.annotate import records, rules, vlm
from vlaad_ray.annotate.identity import existing, origin
from vlaad_ray.configs import AnnotateConfig, UserError
from vlaad_ray.runtime import cli, cluster, record

NAMED_IN_ERROR = 5


def annotate(config: AnnotateConfig) -> dict[str, Any]:
    """Annotate every episode of `config.data` into `config.out`; returns what summary.json holds (docs/phases.md).

    Raises UserError for an empty dataset, and, after all the others are annotated, when episode files were corrupt or
    no answer of a VLM was usable.
    """
    record.begin(config.out, config, {"--data": config.data})
    began = time.monotonic()
    paths = store.list_episodes(config.data)
    check_robot(paths)
    record.write_run_record(config.out, config)
    cluster.connect(ray_data=True)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours instead of one an operator
    context.issue_detectors_config.detectors = []  # pages of advice on how much memory vLLM takes
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if config.annotator == "rules":
        summary = records.summarise(annotate_by_rules(paths, config), config)
    else:
        counted, asked = vlm.annotate_by_vlm(paths, config)
        summary = {**records.summarise(counted, config), **asked}
    summary["seconds"] = round(time.monotonic() - began, 2)
    store.write_json(config.out / "summary.json", summary)
    if summary["errors"]:
        shown = "; ".join(summary["errors"][:NAMED_IN_ERROR])
        more = f"; and {len(summary['errors']) - NAMED_IN_ERROR} more, see summary.json"
        raise UserError(
            f"{len(summary['errors'])} of {len(paths)} episode files could not be annotated (the others were): "
            f"{shown}{more if len(summary['errors']) > NAMED_IN_ERROR else ''}"
        )
    if summary.get("failure"):
        raise UserError(summary["failure"])
    return summary


def check_robot(paths: Sequence[Path]) -> None:
    """Raises UserError if the first readable episode is of a robot that cannot be annotated."""
    for path in paths:
        try:
            footer = store.read_metadata(path)
        except UserError:
            continue  # named with the others that cannot be read
        rules.check_robot(store.read_embodiment(footer), path)
        return


def annotate_by_rules(paths: Sequence[Path], config: AnnotateConfig) -> list[dict[str, Any]]:
    """A record for each episode: records.count, or the error that the file is to blame for."""
    rows = (
        ray.data.from_items([{"path": str(path)} for path in paths])
        .map(functools.partial(annotate_file, config=config, origin=origin(config)))
        .iter_rows()
    )
    counted = []
    with cli.progress("annotating", len(paths)) as advance:
        for row in rows:
            counted.append(json.loads(row["record"]))
            advance("")
    return counted


def annotate_file(row: dict[str, Any], config: AnnotateConfig, origin: dict[str, Any]) -> dict[str, Any]:
    """One episode file -> {"record": JSON}: its counts for the summary, or the error that the file is to blame for.

    JSON, because Arrow turns dicts with different keys into one with all of them.
    """
    path = Path(row["path"])
    try:
        episode = store.read_episode(path, images=False)
        rules.check_robot(episode.embodiment, episode.key.name)
        origin = {**origin, "content_hash": store.read_metadata(path)["content_hash"]}
    except UserError as error:
        return {"record": json.dumps({"error": str(error)})}
    annotation = existing(config.out, episode.key.name, origin)
    skipped = annotation is not None
    if annotation is None:
        annotation = rules.by_rules(episode, rules.nine_phases(episode), config.phases)
        store.write_annotation(config.out, annotation, origin)
    return {"record": json.dumps({"skipped": skipped, **records.count(episode, annotation, config.phases)})}
