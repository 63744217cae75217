"""What a sweep found: the order of its trials, the best, the Pareto front, the table. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

Goal = Literal["accuracy", "success", "both"]


@dataclass(frozen=True)
class Trial:
    """How one trial ended."""

    name: str
    settings: Mapping[str, float]
    state: Literal["finished", "stopped early", "failed"]
    epochs: int
    near: float | None = None
    """Share of held-out actions within 8 of 256 bins, of the image path, at the last epoch."""
    exact: float | None = None
    """Share of held-out actions in the very bin."""
    success: Mapping[str, Any] | None = None
    """Closed loop on the tuning placements: summaries.Success, as Ray Tune keeps it."""
    seconds: float = 0.0
    """Over all, waiting included."""
    error: str | None = None


def summarise(trials: Sequence[Trial], goal: Goal) -> dict[str, Any]:
    """The part of summary.json that is about trials, best first."""
    found = best(trials, goal)
    states = ("finished", "stopped early", "failed")
    return {
        "goal": goal,
        "counts": {state: sum(trial.state == state for trial in trials) for state in states},
        "best": asdict(found) if found is not None else None,
        "pareto_front": [trial.name for trial in pareto_front(trials)] if goal == "both" else None,
        "trials": [asdict(trial) for trial in ordered(trials, goal)],
    }


def ordered(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Finished trials by what counts, best first; then stopped ones, those that came further first; then failed."""
    ranks = {"finished": 2, "stopped early": 1, "failed": 0}

    def key(trial: Trial) -> tuple[float, ...]:
        reached = trial.epochs if trial.state != "finished" else 0
        return (ranks[trial.state], reached, *score(trial, goal))

    return sorted(trials, key=key, reverse=True)


def score(trial: Trial, goal: Goal) -> tuple[float, ...]:
    """More is better, in lexical order: accuracy, or success first and accuracy between equals."""
    accuracy = trial.near if trial.near is not None else -1.0
    if goal == "accuracy":
        return (accuracy,)
    return (trial.success["rate"] if trial.success is not None else -1.0, accuracy)


def best(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The best finished trial (for "both": the most successful on the front, which is the most successful of all)."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return max(finished, key=lambda trial: score(trial, goal), default=None)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Finished trials that no other beats in accuracy or success without losing in the other, most successful first."""
    scored = [(score(trial, "both"), trial) for trial in trials if trial.state == "finished"]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other, _ in scored)

    front = [(points, trial) for points, trial in scored if not beaten(points)]
    return [trial for _, trial in sorted(front, key=lambda pair: pair[0], reverse=True)]


def columns(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table; an empty cell was not measured."""
    trials = summary["trials"]
    names = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    closed_loop = summary["goal"] != "accuracy"
    front = summary["pareto_front"] or ()
    headings = [*names, "epochs", "near", "exact", *(["success"] if closed_loop else []), "s", ""]
    rows = []
    for trial in trials:
        cells = [f"{trial['settings'][name]:.4g}" for name in names]
        cells += [str(trial["epochs"]), *(_percent(trial[name]) for name in ("near", "exact"))]
        if closed_loop:
            cells.append(_success(trial["success"]) if trial["success"] else "")
        remark = "" if trial["state"] == "finished" else trial["state"]
        if summary["best"] and trial["name"] == summary["best"]["name"]:
            remark = "best"
        elif trial["name"] in front:
            remark = "Pareto front"
        rows.append([*cells, f"{trial['seconds']:.0f}", remark])
    return headings, rows


def show(summary: Mapping[str, Any]) -> Table:
    """What jobs/sweep.py prints."""
    counts = ", ".join(f"{number} {state}" for state, number in summary["counts"].items() if number)
    title = (
        f"{len(summary['trials'])} trials: {counts}. Near, exact: on held-out episodes; success: on tuning placements"
    )
    table = Table(title=title, title_justify="left")
    headings, rows = columns(summary)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    table.caption = f"the best again, or longer: python jobs/train.py --config {summary['best_config']} --out RUN"
    return table


def _success(summary: Mapping[str, Any]) -> str:
    """`2/3 [21, 94]`: the 95 % Wilson interval in per cent."""
    low, high = summary["wilson95"]
    return f"{summary['k']}/{summary['n']} [{100 * low:.0f}, {100 * high:.0f}]"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
