"""A policy on the family of a suite: on the suite itself and on variants that perturb it, each in a folder of its own.

OUT/SUITE is an evaluation like any other, so a rerun completes what is missing. OUT/perturbed.json says what they show
together, each variant beside its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from vlaad_ray import store
from vlaad_ray.configs import EvalConfig, Location, UserError, location, parse_range
from vlaad_ray.envs import SUITES, Suite, find_suite
from vlaad_ray.evaluate.outcomes import KINDS, read_results, succeeded
from vlaad_ray.evaluate.stage import evaluate
from vlaad_ray.runtime import cli
from vlaad_ray.runtime.record import begin, files_in, software, write_run_record
from vlaad_ray.stats import format_success, paired
from vlaad_ray.summaries import Comparison, EvalSummary
from vlaad_ray.teachers import TEACHERS
from vlaad_ray.types import Outcome

SUMMARY = "perturbed.json"
ALL = "all"


def evaluate_family(config: EvalConfig) -> dict[str, Any]:
    """Complete the evaluation of every suite of the family; return (and write) what they say together."""
    student = None if config.policy in TEACHERS else location(config.policy)
    begin(
        config.out, config, {"--policy": student, **files_in(config.teacher_config), "--compare-to": config.compare_to}
    )
    suites = family(config.suite, config.perturb)
    if config.compare_to is not None and not any(baseline(config, suite) for suite in suites):
        read_results(config.compare_to)  # says that there are none
    parts = {suite: part(config, suite) for suite in suites}
    left_out = {suite: why_left_out(config, find_suite(suite)) for suite in suites[1:] if not parts[suite].tasks}
    for suite, why in left_out.items():
        cli.console.print(f"[yellow]left out:[/] {suite}: {why}")
    rows: dict[str, Any] = {}
    for suite, own in parts.items():
        if suite not in left_out:
            cli.console.rule(suite)
            rows[suite] = row(config, suite, evaluate(own))
    write_run_record(config.out, config)
    summary = {
        "policy": rows[config.suite]["policy"],
        "suite": config.suite,
        "suites": rows,
        "left_out": left_out,
        **software(),
    }
    store.write_json(config.out / SUMMARY, summary)
    return summary


def family(parent: str, perturb: str) -> list[str]:
    """The suite and those of its variants that `perturb` names: all, or some as `lan,swap`.

    Raises UserError for a suite without variants, or a variant that it has not.
    """
    find_suite(parent)
    variants = {name.removeprefix(f"{parent}_"): name for name, suite in SUITES.items() if suite.variant_of == parent}
    if not variants:
        parents = dict.fromkeys(suite.variant_of for suite in SUITES.values() if suite.variant_of is not None)
        raise UserError(f"--perturb: {parent} has no variants; choose --suite from {', '.join(parents)}")
    chosen = [word.strip() for word in perturb.split(",")]
    for word in chosen:
        if word != ALL and word not in variants:
            raise UserError(f"--perturb: {parent} has no variant {word!r}; choose from {ALL}, {', '.join(variants)}")
    return [parent, *(name for word, name in variants.items() if word in chosen or ALL in chosen)]


def part(config: EvalConfig, suite: str) -> EvalConfig:
    """One suite's evaluation. Where the parent runs what was asked for, a variant runs as much of it as there is."""
    own = replace(config, perturb="", suite=suite, out=config.out / suite, compare_to=baseline(config, suite))
    if suite == config.suite:
        return own
    entry = find_suite(suite)
    tasks = planned_tasks(config, entry)
    states = planned_states(config, entry, tasks)
    return replace(own, tasks=_as_range(tasks, config.tasks), init_states=_as_range(states, config.init_states))


def planned_tasks(config: EvalConfig, suite: Suite) -> list[int]:
    """Those that repeat one of --tasks, which are the parent's; new ones go by their own number.

    Without those that cannot be run, or have no init states where some are asked for.
    """
    wanted = parse_range(config.tasks, "--tasks")
    parents = {task: suite.parents_task(task) for task in range(len(suite.tasks()))}
    tasks = [task for task, parents_own in parents.items() if (task if parents_own is None else parents_own) in wanted]
    return [
        task for task in tasks if suite.missing(task) is None and (not config.init_states or suite.init_states(task))
    ]


def why_left_out(config: EvalConfig, suite: Suite) -> str:
    missing = [suite.missing(task) for task in range(len(suite.tasks()))]
    return next((why for why in missing if why is not None), f"it repeats none of the tasks {config.tasks}")


def planned_states(config: EvalConfig, suite: Suite, tasks: Sequence[int]) -> list[int]:
    """Those of --init-states that each of the tasks has; where there are none of them, all that there are.

    Some variants have 10, 0-9. Nobody collects from them unless he says so, so they are as good as those kept apart.
    """
    wanted = parse_range(config.init_states, "--init-states")
    fewest = min((suite.init_states(task) for task in tasks), default=0)
    return [state for state in wanted if state < fewest] or list(range(fewest if wanted else 0))


def _as_range(numbers: Sequence[int], given: str) -> str:
    return given if list(parse_range(given)) == list(numbers) else ",".join(map(str, numbers))


def baseline(config: EvalConfig, suite: str) -> Location | None:
    """What of --compare-to stands beside this suite: of a family its folder, of one evaluation that of its suite."""
    if config.compare_to is None:
        return None
    for place in (config.compare_to / suite, config.compare_to):
        summary = store.read_summary(place, EvalSummary)
        if summary is not None and summary.suite == suite:
            return place
    return None


def row(config: EvalConfig, suite: str, summary: EvalSummary) -> dict[str, Any]:
    """What is said of one suite, from its evaluation's summary and outcomes."""
    said: dict[str, Any] = {
        "policy": summary.policy,
        "init_states": summary.init_states,
        "success": summary.success,
        "warnings": summary.warnings,
        "tasks": sorted(map(int, summary.tasks)),
    }
    if suite != config.suite:
        own, parents = read_results(config.out / suite), read_results(config.out / config.suite)
        said["against_parent"] = against_parent(find_suite(suite), own, parents)
    place = baseline(config, suite)
    other = store.read_summary(place, EvalSummary) if place is not None else None
    if summary.paired is not None and other is not None:
        said["baseline"] = {"policy": other.policy, "success": other.success}
        said["paired"] = summary.paired
    return said


def against_parent(suite: Suite, own: Sequence[Outcome], parents: Sequence[Outcome]) -> Comparison | None:
    """Paired comparison of a variant with its parent, over equal tasks and numbers of init states; None: none are.

    The states of one number are mostly two draws from the same layout, not the same scene. McNemar's test holds, since
    a pair shares its task; it is only less sharp than one over the same scenes would be.
    """
    kinds = {}
    for kind in KINDS:
        of_parent = {(outcome.task, outcome.init): succeeded(outcome, kind) for outcome in parents}
        of_variant: dict[tuple[int, str], bool] = {}
        for outcome in own:
            task = suite.parents_task(outcome.task)
            if task is not None:
                of_variant.setdefault((task, outcome.init), succeeded(outcome, kind))
        if not of_variant.keys() & of_parent.keys():
            return None
        kinds[kind] = paired(of_variant, of_parent)
    return Comparison(kinds["ever"], kinds["final"])


def show_family(summary: dict[str, Any]) -> Table:
    rows = summary["suites"]
    others = dict.fromkeys(row["baseline"]["policy"] for row in rows.values() if "baseline" in row)
    table = Table(title=f"{summary['policy']} on {summary['suite']}, perturbed", title_justify="left")
    columns = ["suite", "success ever [95 % Wilson]", "after release", "against the parent, ever"]
    columns += [f"{', '.join(others)}, ever", "against that"] if others else []
    for column in columns:
        table.add_column(column, overflow="fold")  # suites of one family differ in how their long names end
    for suite, said in rows.items():
        success = said["success"]
        cells = [suite, format_success(success.ever), format_success(success.final)]
        cells.append(difference(said.get("against_parent")))
        if others:
            cells.append(format_success(said["baseline"]["success"].ever) if "baseline" in said else "")
            cells.append(difference(said.get("paired")))
        table.add_row(*cells)
    if summary["left_out"]:
        table.caption = f"left out: {', '.join(summary['left_out'])}"
    return table


def difference(pairs: Comparison | None) -> str:
    """`-12.0 points of 50, p = 0.031`; nothing without pairs."""
    if pairs is None:
        return ""
    pair = pairs.ever
    return f"{100 * pair.difference:+.1f} points of {pair.n}, p = {pair.mcnemar_p:.3f}"
