"""What many outcomes say together: rates with intervals, and comparisons with another evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.stats import paired, success_of
from vlaad_ray.summaries import Comparison, Successes, TaskSuccesses
from vlaad_ray.types import Outcome

KINDS = ("ever", "final")
FLIP_WINDOW = 240
"""Gripper flips are reported per 240 control steps (12 s), as the paper does."""


def succeeded(outcome: Outcome, kind: str) -> bool:
    """`kind`: ever, or final."""
    return outcome.success_ever if kind == "ever" else outcome.success_final


def success(outcomes: Sequence[Outcome]) -> Successes:
    """Over all of them. Raises ValueError for none."""
    return Successes(**{kind: success_of([succeeded(outcome, kind) for outcome in outcomes]) for kind in KINDS})


def by_task(outcomes: Sequence[Outcome]) -> dict[str, TaskSuccesses]:
    """Number of a task, as text, -> its successes."""
    apart: dict[int, list[Outcome]] = {task: [] for task in sorted({outcome.task for outcome in outcomes})}
    for outcome in outcomes:
        apart[outcome.task].append(outcome)
    return {
        str(task): TaskSuccesses(**vars(success(own)), instruction=own[0].instruction) for task, own in apart.items()
    }


def flips(outcomes: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """How often grippers turned in FLIP_WINDOW steps, and in an episode; None where that is not known of all."""
    if not all("gripper_flips" in outcome.metrics for outcome in outcomes):
        return None, None
    turned = sum(outcome.metrics["gripper_flips"] for outcome in outcomes)
    return FLIP_WINDOW * turned / sum(outcome.recorded_steps for outcome in outcomes), turned / len(outcomes)


def steps_mean(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.steps for outcome in outcomes) / len(outcomes)


def read_results(out: Location) -> list[Outcome]:
    """The outcomes of another evaluation."""
    outcomes = list(store.read_evaluation(out).values())
    if not outcomes:
        raise UserError(f"{out} holds no evaluation; run jobs/eval.py --out {out} first")
    return outcomes


def compare(a: Iterable[Outcome], b: Iterable[Outcome], baseline: str | None = None) -> Comparison:
    """Paired comparison on the starts that both have run, for both kinds of success. `baseline`: where `b` is."""
    own, other = list(a), list(b)

    def by_start(outcomes: Sequence[Outcome], kind: str) -> dict[tuple[str, int, str], bool]:
        return {(each.suite, each.task, each.init): succeeded(each, kind) for each in outcomes}

    if not by_start(own, "ever").keys() & by_start(other, "ever").keys():
        raise UserError("--compare-to: the two evaluations share no task and init state; run both on the same ones")
    pairs = {kind: paired(by_start(own, kind), by_start(other, kind)) for kind in KINDS}
    return Comparison(pairs["ever"], pairs["final"], baseline)
