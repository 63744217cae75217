"""The stage that makes a dataset of ours out of another project's."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from vlaad_ray import plugins, store
from vlaad_ray.configs import ImportDatasetConfig, UserError, settings_of
from vlaad_ray.envs import find_suite
from vlaad_ray.exchange import SOURCES
from vlaad_ray.exchange.convert import episode_of, key_of
from vlaad_ray.exchange.records import Item, Plan
from vlaad_ray.runtime import cli, places, record
from vlaad_ray.runtime.over_episodes import over_pieces
from vlaad_ray.summaries import ImportDatasetSummary

NO_SUITE = "none"
ENCODE = {"jpeg": store.encode_jpeg, "png": store.encode_png}


def import_dataset(config: ImportDatasetConfig) -> ImportDatasetSummary:
    """Complete the dataset that `config` describes; return (and write) its summary."""
    began = time.monotonic()
    record.begin(config.out, config, {"--from": config.from_})
    places.check(config)
    if not re.fullmatch(r"[\w.]+", config.policy):
        raise UserError(f"--policy {config.policy}: letters, digits, _ and . alone, as it is part of files' names")
    source = plugins.lookup("source", SOURCES, config.source)
    reading = source.config() if config.reading is None else config.reading
    reading = settings_of(f"source {config.source}", source.config, reading)
    plan = in_suite(config, source.plan(config, reading))
    if not plan.items:
        raise UserError(f"{config.from_} holds no episode")
    record.write_run_record(config.out, config)
    stored = store.stored_episodes(config.out)
    names = {key_of(config, plan, item).name for items in plan.items for item in items}
    if foreign := sorted(stored - names):
        raise UserError(
            f"--out {config.out} holds {len(foreign)} episodes of another source or other settings (first "
            f"{foreign[0]}); choose another directory"
        )
    work = functools.partial(import_items, config=config, plan=plan, stored=stored)
    found = [each for piece in over_pieces(plan.items, work, "importing") for each in piece["episodes"]]
    replayed = tuple(source.replay(config, reading, plan))
    notes = [*plan.notes, *remarks(config, plan, found)]
    for note in notes:
        cli.console.print(f"[yellow]note:[/] {note}", soft_wrap=True)
    summary = ImportDatasetSummary(
        source=config.source,
        episodes=len(found),
        frames=sum(each["steps"] for each in found),
        failed=sum(not each["kept"] for each in found),
        success_unknown=sum(not each["success_known"] for each in found),
        imported_before=sum(each["before"] for each in found),
        cameras=plan.body.cameras,
        action_dim=plan.body.action_dim,
        proprio_dim=plan.body.proprio_dim,
        rate_hz=plan.body.rate_hz,
        annotatable=plan.body.libero_arm,
        replayed=replayed,
        notes=tuple(notes),
        seconds=round(time.monotonic() - began, 2),
        **record.software(),
    )
    store.write_json(config.out / "summary.json", summary)
    return summary


def in_suite(config: ImportDatasetConfig, plan: Plan) -> Plan:
    """The plan with tasks numbered as the suite has them. Raises UserError for a task that the suite lacks."""
    if config.suite == NO_SUITE:
        return plan
    numbers = {_words(text): number for number, text in enumerate(find_suite(config.suite).tasks())}

    def renumbered(item: Item) -> Item:
        if _words(item.instruction) not in numbers:
            raise UserError(f"--suite {config.suite} has no task {item.instruction!r}; choose another, or none")
        return replace(item, task=numbers[_words(item.instruction)])

    return replace(plan, items=tuple(tuple(map(renumbered, items)) for items in plan.items))


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def import_items(
    items: Sequence[Item], config: ImportDatasetConfig, plan: Plan, stored: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """In a worker: store the episodes that are not there yet. A record of each."""
    new = [item for item in items if key_of(config, plan, item).name not in stored]
    records = [
        _record(store.read_metadata(config.out / "episodes" / f"{name}.parquet"), before=True)
        for name in (key_of(config, plan, item).name for item in items)
        if name in stored
    ]
    for item, found in zip(new, plan.read(new), strict=True):
        episode, extra = episode_of(config, plan, item, found)
        path = store.write_episode(config.out, episode, {**extra, **record.software()}, ENCODE[config.pictures])
        records.append(_record(store.read_metadata(path), before=False))
    return {"episodes": records}


def _record(footer: Mapping[str, Any], before: bool) -> dict[str, Any]:
    known = footer["imported"]["success_known"]
    return {"steps": footer["steps"], "kept": footer["kept"], "success_known": known, "before": before}


def remarks(config: ImportDatasetConfig, plan: Plan, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the next stages will meet."""
    notes = []
    if unknown := sum(not each["success_known"] for each in found):
        notes.append(f"{unknown} of {len(found)} episodes do not say whether they succeeded: taken for successes")
    if not plan.body.libero_arm:
        notes.append(
            "the rules cannot annotate this robot (LIBERO's arm: 7 actions, 8 of proprioception, 20 steps a second); "
            "phases are what the source says, if it does: train with --objective bc"
        )
    if config.suite != NO_SUITE:
        notes.append("whether these start where evaluations do cannot be known: their init states have no number")
    return notes


def show(summary: ImportDatasetSummary) -> Table:
    names = ("episodes", "frames", "failed", "success_unknown", "imported_before", "cameras", "rate_hz", "seconds")
    rows: dict[str, Any] = {name.replace("_", " "): getattr(summary, name) for name in names}
    if summary.replayed:
        rows["replayed"] = f"{sum(each.success for each in summary.replayed)} of {len(summary.replayed)} succeed"
    return cli.key_value_table(f"Imported from {summary.source}", rows)
