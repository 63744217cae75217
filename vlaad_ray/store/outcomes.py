"""A small JSON record of every episode that ended: the one place that knows its form on disk.

An Outcome's metrics lie beside its other fields: `{"suite": …, "success_ever": …, "gripper_flips": …}`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TypeVar

from vlaad_ray.configs import Location, UserError, read_record
from vlaad_ray.files import children, in_parallel, read_json, write_json
from vlaad_ray.store.summaries import read_summary
from vlaad_ray.summaries import EvalSummary
from vlaad_ray.types import Collected, Outcome

Ended = TypeVar("Ended", Outcome, Collected)


def write_outcome(root: Location, name: str, outcome: Outcome | Collected) -> Location:
    """The record that the episode called `name` ended. Written last: an episode without it is run again."""
    content = asdict(outcome)
    metrics = content.pop("metrics", {})
    if taken := content.keys() & metrics.keys():
        raise ValueError(f"a metric called {min(taken)!r} would hide what an outcome says anyway: call it otherwise")
    return write_json(root / "outcomes" / f"{name}.json", content | metrics)


def read_outcomes(root: Location, kind: type[Ended], known: Mapping[str, Ended] | None = None) -> dict[str, Ended]:
    """Episode name -> its outcome, of every episode that ended in an evaluation (Outcome) or collection (Collected).

    Of `known` ones, read before, it is only checked that they are still there.
    """
    known = known or {}
    paths = children(root / "outcomes", ".json")
    new = [path for path in paths if path.stem not in known]
    read = in_parallel(functools.partial(read_outcome, kind=kind), new)
    found = {**known, **{path.stem: outcome for path, outcome in zip(new, read, strict=True)}}
    return {path.stem: found[path.stem] for path in paths}


def account_for(
    root: Location, kind: type[Ended], planned: Sequence[str], lost: Sequence[str], known: Mapping[str, Ended]
) -> tuple[dict[str, Ended], list[str]]:
    """After a run, (planned episodes' outcomes in `root`, by name; those of the `lost` ones that have none).

    `known`: outcomes read before. Raises UserError if an episode is neither here nor lost.
    """
    found = read_outcomes(root, kind, known)
    mine = {name: found[name] for name in planned if name in found}
    without = [name for name in lost if name not in mine]
    missing = [name for name in planned if name not in mine and name not in without]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(planned)} episodes were run and are not here (first {missing[0]}); the "
            "nodes that ran them wrote elsewhere, or somebody removed them: give a place that all nodes share"
        )
    return mine, without


def read_outcome(path: Location, kind: type[Ended]) -> Ended:
    """Raises UserError for a file that is no outcome of this kind."""
    content = read_json(path)
    if kind is Outcome and isinstance(content, dict):
        own = {field.name for field in fields(kind)}
        content["metrics"] = {name: value for name, value in content.items() if name not in own}
    return read_record(kind, content, str(path), "delete it and rerun the job that writes it")


def read_evaluation(root: Location) -> dict[str, Outcome]:
    """The outcomes that an evaluation's summary speaks of: its folder may hold those of other settings, too."""
    summary = read_summary(root, EvalSummary)
    if summary is None:
        return {}
    paths = [root / "outcomes" / f"{name}.json" for name in summary.episodes]
    return dict(zip(summary.episodes, in_parallel(functools.partial(read_outcome, kind=Outcome), paths), strict=True))
