"""Evaluating a student with a copy in every simulator's process against replicas for all of them, in the same run.

Whole evaluations, on real LIBERO: starting simulators and loading networks counts. The two ways take turns, so that a
machine that drifts does not favour one.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import BenchEvaluationConfig, BenchPolicyConfig, EvalConfig, Location, ServingConfig, UserError
from vlaad_ray.evaluate.stage import evaluate
from vlaad_ray.experiments.bench.policy import find_checkpoint
from vlaad_ray.runtime import cli, cluster
from vlaad_ray.runtime.record import software, write_run_record
from vlaad_ray.types import Outcome

WAYS = ("local", "shared")


def bench_evaluation(config: BenchEvaluationConfig) -> dict[str, Any]:
    """Episodes a minute of both ways, and whether they ended alike. Raises UserError where an earlier run is there."""
    if (config.out / WAYS[0]).exists():
        raise UserError(f"--out: {config.out} holds evaluations, which would not be run again; give another directory")
    write_run_record(config.out, config)
    checkpoint = find_checkpoint(BenchPolicyConfig(policy=config.policy, out=config.out))
    cluster.connect()
    minutes: dict[str, list[float]] = {way: [] for way in WAYS}
    with cli.progress("bench evaluation", len(WAYS) * config.repeats) as advance:
        for repeat in range(config.repeats):
            for way in WAYS if repeat % 2 == 0 else reversed(WAYS):
                evaluated = evaluate(evaluation(config, checkpoint, way, config.out / way / str(repeat)))
                minutes[way].append(evaluated.seconds / 60)
                advance(f"{way}: {evaluated.success.ever.n / minutes[way][-1]:.1f} episodes a minute")
    ended = {way: store.read_outcomes(config.out / way / "0", Outcome) for way in WAYS}
    episodes = len(ended["local"])
    summary = {
        "policy": config.policy,
        "episodes": episodes,
        "episodes_per_minute": {way: episodes / statistics.median(took) for way, took in minutes.items()},
        "shared_to_local": statistics.median(a / b for a, b in zip(minutes["local"], minutes["shared"], strict=True)),
        "equal_outcomes": sum(ended["local"][name] == outcome for name, outcome in ended["shared"].items()),
        "minutes": minutes,
        "device": config.device,
        "serving": {"replicas": max(1, config.serving.replicas), "max_batch": config.serving.max_batch},
        **software(),
    }
    store.write_json(config.out / "summary.json", summary)
    return summary


def evaluation(config: BenchEvaluationConfig, checkpoint: Location, way: str, out: Location) -> EvalConfig:
    """One evaluation: the same episodes either way."""
    shared = replace(config.serving, replicas=max(1, config.serving.replicas))
    return EvalConfig(
        policy=str(checkpoint),
        out=out,
        suite=config.suite,
        tasks=config.tasks,
        init_states=config.init_states,
        execute=config.execute,
        budget=config.budget,
        videos=0,
        device=config.device if way == "shared" else "cpu",
        serving=shared if way == "shared" else ServingConfig(),
        env=config.env,
        fleet=config.fleet,
    )


def show(summary: dict[str, Any]) -> Table:
    rates = summary["episodes_per_minute"]
    rows = {
        "a copy in each simulator, episodes a minute": rates["local"],
        f"{summary['serving']['replicas']} shared on {summary['device']}, episodes a minute": rates["shared"],
        "shared to local": summary["shared_to_local"],
        "episodes that ended alike": f"{summary['equal_outcomes']} of {summary['episodes']}",
    }
    return cli.key_value_table(f"Evaluating {summary['policy']}", rows)
