"""The stage: every episode of a dataset gets an annotation, one Parquet file each, with Ray Data.

Who annotates is a choice (rules, or a VLM in the rules' phases); what surrounds it is the same for both: resuming,
provenance, corrupt files, the summary.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray.data

from vlaad_ray import store
from vlaad_ray.annotate import records, rules, vlm
from vlaad_ray.annotate.identity import existing, origin
from vlaad_ray.configs import AnnotateConfig, Location, UserError
from vlaad_ray.runtime import cluster, places, record
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.summaries import AnnotateSummary, VlmSummary
from vlaad_ray.types import Episode

NAMED_IN_ERROR = 5


def annotate(config: AnnotateConfig) -> AnnotateSummary:
    """Annotate every episode of `config.data` into `config.out`; return (and write) the summary, a VLM's with its part.

    Raises UserError for an empty dataset, and, after all the others are annotated, when episode files were corrupt or
    no answer of a VLM was usable.
    """
    record.begin(config.out, config, {"--data": config.data})
    places.check(config)
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
        summary = vlm.annotate_by_vlm(paths, config)
    summary = replace(summary, seconds=round(time.monotonic() - began, 2))
    store.write_summary(config.out, summary)
    if summary.errors:
        shown = "; ".join(summary.errors[:NAMED_IN_ERROR])
        more = f"; and {len(summary.errors) - NAMED_IN_ERROR} more, see summary.json"
        raise UserError(
            f"{len(summary.errors)} of {len(paths)} episode files could not be annotated (the others were): "
            f"{shown}{more if len(summary.errors) > NAMED_IN_ERROR else ''}"
        )
    if isinstance(summary, VlmSummary) and summary.failure is not None:
        raise UserError(summary.failure)
    return summary


def check_robot(paths: Sequence[Location]) -> None:
    """Raises UserError if the first readable episode is of a robot that cannot be annotated."""
    for path in paths:
        with suppress(UserError):  # named with the others that cannot be read
            footer = store.read_metadata(path)
            break
    else:
        return
    rules.check_robot(store.read_embodiment(footer), path)


def annotate_by_rules(paths: Sequence[Location], config: AnnotateConfig) -> list[dict[str, Any]]:
    """A record for each episode: records.count, or the error that the file is to blame for."""
    work = functools.partial(annotate_episode, config=config, origin=origin(config))
    return over_episodes(paths, work, "annotating")


def annotate_episode(
    _: Location, episode: Episode, facts: Mapping[str, Any], config: AnnotateConfig, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Store the labels of an episode, unless they are there. Its counts, or the error that it is to blame for."""
    if (why := rules.unsuitable(episode.embodiment, episode.key.name)) is not None:
        return {"error": why}
    origin = {**origin, "content_hash": facts["content_hash"]}
    annotation = existing(config.out, episode.key.name, origin)
    skipped = annotation is not None
    if annotation is None:
        annotation = rules.by_rules(episode, rules.nine_phases(episode), config.phases)
        store.write_annotation(config.out, annotation, origin)
    return {"skipped": skipped, **records.count(episode, annotation, config.phases)}
