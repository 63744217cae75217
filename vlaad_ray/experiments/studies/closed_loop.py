"""What studies read out of evaluations: success of both kinds, flips of the gripper, paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlaad_ray.configs import Location
from vlaad_ray.evaluate.outcomes import FLIP_WINDOW, KINDS, read_results, succeeded
from vlaad_ray.stats import format_success, paired, ratio_interval, success_of
from vlaad_ray.summaries import Comparison
from vlaad_ray.types import Outcome


@dataclass(frozen=True)
class SeededOutcome(Outcome):
    """Of a student that was trained with `seed`; of a teacher, 0."""

    seed: int = 0


Outcomes = Sequence[SeededOutcome]
FLIPS_OF_A_GRASP = 2
"""The gripper closes on a thing and opens: what an episode needs where one thing is to be moved."""


def outcomes(evaluations: Mapping[int, Location]) -> list[SeededOutcome]:
    """Seed -> directory of its evaluation; all episodes, each with its seed."""
    return [
        SeededOutcome(**vars(outcome), seed=seed) for seed, out in evaluations.items() for outcome in read_results(out)
    ]


def rates(of: Outcomes) -> dict[str, Any]:
    """Success "ever" and "final" with Wilson intervals; flips per 240 steps, those taken back, and those too many."""
    steps = [outcome.recorded_steps for outcome in of]
    flips = [outcome.metrics["gripper_flips"] for outcome in of]
    taken_back = [outcome.metrics["gripper_flips"] - outcome.metrics["gripper_flips_meant"] for outcome in of]
    needless = [max(0, each - FLIPS_OF_A_GRASP) for each in flips]
    return {
        "episodes": len(of),
        "steps": sum(steps),
        **{kind: success_of([succeeded(outcome, kind) for outcome in of]) for kind in KINDS},
        "flips_per_240": per_window(flips, steps),
        "taken_back_per_240": per_window(taken_back, steps),
        "needless_per_240": per_window(needless, steps),
    }


def by_seed(of: Outcomes) -> list[dict[str, int]]:
    """Episodes and successes of each seed of training: what is beneath intervals that take them as independent."""
    seeds = sorted({outcome.seed for outcome in of})
    apart = {seed: [outcome for outcome in of if outcome.seed == seed] for seed in seeds}
    return [
        {"seed": seed, "n": len(own), **{kind: sum(succeeded(outcome, kind) for outcome in own) for kind in KINDS}}
        for seed, own in apart.items()
    ]


def per_window(counts: Sequence[int], steps: Sequence[int]) -> dict[str, Any]:
    interval = ratio_interval(counts, steps)
    return {
        "rate": FLIP_WINDOW * sum(counts) / sum(steps),
        "interval95": [FLIP_WINDOW * end for end in interval] if interval is not None else None,
    }


def matched(a: Outcomes, b: Outcomes, kind: str, by_seed: bool) -> tuple[dict[Any, bool], dict[Any, bool]]:
    """Successes of `a` and of `b` on the starts that both have run, with equal keys.

    `by_seed`: a seed of training of `a` meets the same of `b`. Else `b` has no seed (a teacher) and meets them all.
    """
    of_b = {(*_start(outcome), outcome.seed if by_seed else None): succeeded(outcome, kind) for outcome in b}
    own, other = {}, {}
    for outcome in a:
        key = (*_start(outcome), outcome.seed)
        partner = key if by_seed else (*_start(outcome), None)
        if partner in of_b:
            own[key], other[key] = succeeded(outcome, kind), of_b[partner]
    return own, other


def compare(a: Outcomes, b: Outcomes, by_seed: bool) -> Comparison | None:
    """stats.paired of `matched`, for both kinds of success; None where they share nothing."""
    ever, final = (matched(a, b, kind, by_seed) for kind in KINDS)
    return Comparison(paired(*ever), paired(*final)) if ever[0] else None


def difference(pairs: Comparison | None) -> str:
    """`-1.5 points, p = 0.25` of success "ever"; nothing where nothing was compared."""
    if pairs is None:
        return ""
    return f"{100 * pairs.ever.difference:+.1f} points, p = {pairs.ever.mcnemar_p:.2g}"


def success_cells(measured: Mapping[str, Any]) -> list[str]:
    return [format_success(measured[kind]) for kind in KINDS]


def success_points(measured: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Success "ever" in per cent, and how far its interval reaches below and above: matplotlib's y and yerr."""
    rates = [each["ever"] for each in measured]
    below = [100 * max(0.0, each.rate - each.wilson95[0]) for each in rates]
    above = [100 * max(0.0, each.wilson95[1] - each.rate) for each in rates]
    return [100 * each.rate for each in rates], [below, above]


def window_cell(measured: Mapping[str, Any]) -> str:
    """`14.3 [13.1, 15.5]`."""
    if measured["interval95"] is None:
        return f"{measured['rate']:.1f}"
    low, high = measured["interval95"]
    return f"{measured['rate']:.1f} [{low:.1f}, {high:.1f}]"


def _start(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.suite, outcome.task, outcome.init
