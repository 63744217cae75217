"""What many outcomes say together: rates with intervals, and comparisons with another evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vlaad_ray import store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.stats import paired, success_summary
from vlaad_ray.types import Outcome

KINDS = ("ever", "final")
FLIP_WINDOW = 240
"""Gripper flips are reported per 240 control steps (12 s), as the paper does."""


def succeeded(outcome: Outcome, kind: str) -> bool:
    """`kind`: ever, or final."""
    return outcome.success_ever if kind == "ever" else outcome.success_final


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Success "ever" and "final" over all and by task, length of episodes, gripper flips where they were counted."""

    def success(of: Sequence[Outcome]) -> dict[str, Any]:
        return {kind: success_summary([succeeded(outcome, kind) for outcome in of]) for kind in KINDS}

    tasks = sorted({outcome.task for outcome in outcomes})
    return {
        "success": success(outcomes),
        "tasks": {
            str(task): {
                **success(mine := [outcome for outcome in outcomes if outcome.task == task]),
                "instruction": mine[0].instruction,
            }
            for task in tasks
        },
        **flips(outcomes),
        "steps_mean": sum(outcome.steps for outcome in outcomes) / len(outcomes),
    }


def flips(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How often grippers turned; nothing of robots without one."""
    if not all("gripper_flips" in outcome.metrics for outcome in outcomes):
        return {}
    turned = sum(outcome.metrics["gripper_flips"] for outcome in outcomes)
    return {
        "gripper_flips_per_240": FLIP_WINDOW * turned / sum(outcome.recorded_steps for outcome in outcomes),
        "gripper_flips_per_episode": turned / len(outcomes),
    }


def read_results(out: Location) -> list[Outcome]:
    """The outcomes of another evaluation."""
    outcomes = list(store.read_evaluation(out).values())
    if not outcomes:
        raise UserError(f"{out} holds no evaluation; run jobs/eval.py --out {out} first")
    return outcomes


def compare(a: Iterable[Outcome], b: Iterable[Outcome]) -> dict[str, Any]:
    """Paired comparison of two evaluations on the starts that both have run, for both kinds of success."""
    own, other = list(a), list(b)

    def by_start(outcomes: Sequence[Outcome], kind: str) -> dict[tuple[str, int, str], bool]:
        return {(each.suite, each.task, each.init): succeeded(each, kind) for each in outcomes}

    if not by_start(own, "ever").keys() & by_start(other, "ever").keys():
        raise UserError("--compare-to: the two evaluations share no task and init state; run both on the same ones")
    return {kind: paired(by_start(own, kind), by_start(other, kind)) for kind in KINDS}
