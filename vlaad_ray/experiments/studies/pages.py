"""How a study's results are written: NAME.json with the raw numbers, NAME.md with the tables, NAME.png."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from upath import UPath

from vlaad_ray import store
from vlaad_ray.configs import Location
from vlaad_ray.experiments.markdown import wrapped
from vlaad_ray.experiments.studies.workshop import Workshop
from vlaad_ray.runtime.record import software

PLACES = ("out", "results", "minutes")
"""Settings that say where and how long, and so belong to a machine, not to a result."""


def write(
    name: str, config: Any, workshop: Workshop, numbers: Mapping[str, Any], text: str, figure: Figure
) -> Location:
    """Write the three files; returns the path of NAME.md. The config goes with them, without places."""
    budget = workshop.budget
    folder = budget.results or budget.out / "results"
    settings = plain_settings(config)
    store.write_json(
        folder / f"{name}.json",
        {"study": name, **numbers, "not_run": workshop.not_run, "config": settings, **software()},
    )
    with store.replacing(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    changed = [
        f"`{key}` {value}" for key, value in settings.items() if plain_settings(type(config)()).get(key) != value
    ]
    made = software()
    lines = [
        text.rstrip(),
        "",
        f"![{name}]({name}.png)",
        "",
        f"`python jobs/study.py {name}`, "
        + (f"with other than default {', '.join(changed)}." if changed else "with its defaults."),
        f"All settings, versions and raw numbers: [{name}.json]({name}.json). Written at git revision "
        f"{made['git_revision']}; what earlier runs had made has theirs in its `config.json`.",
    ]
    if workshop.not_run:
        lines += ["", "Not run, for lack of time:", "", *(f"- {piece}" for piece in workshop.not_run)]
    path = folder / f"{name}.md"
    with store.replacing(path) as temporary:
        temporary.write_text(wrapped("\n".join(lines)) + "\n")
    return path


def plain_settings(config: Any) -> dict[str, Any]:
    """A study's config as one flat dict: `env.render` and so on; places left out."""

    def flatten(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, each in value.items():
            if isinstance(each, Mapping):
                flat |= flatten(each, "" if key == "budget" else f"{prefix}{key}.")
            elif prefix or key not in PLACES:
                flat[f"{prefix}{key}"] = str(each) if isinstance(each, Path | UPath) else each
        return flat

    return flatten(dataclasses.asdict(config), "")


def span(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """`75.3 (74.9–75.8, n = 3)`: mean, least and greatest; one value alone; nothing for none."""
    if not values:
        return ""
    scaled = [scale * value for value in values]
    mean = f"{sum(scaled) / len(scaled):.{digits}f}"
    if len(scaled) == 1:
        return f"{mean} (n = 1)"
    return f"{mean} ({min(scaled):.{digits}f}–{max(scaled):.{digits}f}, n = {len(scaled)})"


def whole(workshop: Workshop) -> str:
    """What was run, in a line, for the head of a page."""
    budget = workshop.budget
    student = f"`{budget.student}`" + (f", {budget.student_pixels} px" if budget.student_pixels else "")
    cap = f" (at most {budget.max_minutes:g} minutes)" if budget.max_minutes is not None else ""
    return (
        f"Teacher `{budget.teacher}`; student {student}, {budget.epochs} epochs{cap}; "
        f"tasks {budget.tasks} of each suite, init states {budget.init_states} and {budget.placements} placements a "
        f"task to learn from, {budget.eval_init_states} to be tested on; seeds {budget.seeds}."
    )
