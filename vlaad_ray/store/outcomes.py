"""A small JSON record of every episode that ended: the one place that knows its form on disk.

An Outcome's metrics lie beside its other fields: `{"suite": …, "success_ever": …, "gripper_flips": …}`.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from vlaad_ray.configs import UserError
from vlaad_ray.store.files import read_json, write_json
from vlaad_ray.types import Collected, Outcome

Ended = TypeVar("Ended", Outcome, Collected)


def write_outcome(root: Path, name: str, outcome: Outcome | Collected) -> Path:
    """The record that the episode called `name` ended. Written last: an episode without it is run again."""
    content = asdict(outcome)
    metrics = content.pop("metrics", {})
    if taken := content.keys() & metrics.keys():
        raise ValueError(f"a metric called {min(taken)!r} would hide what an outcome says anyway: call it otherwise")
    return write_json(root / "outcomes" / f"{name}.json", content | metrics)


def read_outcomes(root: Path, kind: type[Ended]) -> dict[str, Ended]:
    """Episode name -> its outcome, of every episode that ended in an evaluation (Outcome) or collection (Collected)."""
    return {path.stem: read_outcome(path, kind) for path in sorted((root / "outcomes").glob("[!.]*.json"))}


def read_outcome(path: Path, kind: type[Ended]) -> Ended:
    """Raises UserError for a file that is no outcome of this kind."""
    content = read_json(path)
    known = {field.name for field in fields(kind)} - {"metrics"}
    if not isinstance(content, dict) or (missing := known - content.keys()):
        lack = f"has no {min(missing)!r}" if isinstance(content, dict) else "is no record of an episode"
        raise UserError(f"{path} {lack}; delete it and rerun the job that writes it")
    given: dict[str, Any] = {name: content[name] for name in known}
    if kind is Outcome:
        given["metrics"] = {name: value for name, value in content.items() if name not in known}
    return kind(**given)


def read_evaluation(root: Path) -> dict[str, Outcome]:
    """The outcomes that an evaluation's summary speaks of: its folder may hold those of other settings, too."""
    if not (root / "summary.json").exists():
        return {}
    return {
        name: read_outcome(root / "outcomes" / f"{name}.json", Outcome)
        for name in read_json(root / "summary.json")["episodes"]
    }
