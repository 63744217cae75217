"""Distillation: how much of its teacher's success the student keeps, on the same held-out states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from matplotlib.figure import Figure

from vlaad_ray.configs import Location, StudyDistillationConfig, UserError
from vlaad_ray.experiments.markdown import markdown_table
from vlaad_ray.experiments.studies import closed_loop
from vlaad_ray.experiments.studies.closed_loop import Outcomes, difference, success_cells, success_points, window_cell
from vlaad_ray.experiments.studies.pages import whole, write
from vlaad_ray.experiments.studies.workshop import Workshop, check_objective
from vlaad_ray.runtime.record import begin
from vlaad_ray.stats import paired_ratio, success_of
from vlaad_ray.train.prepare import find_method

PAPER = [
    ["student from OpenVLA-7B, relative to its teacher", "", "", "", "−0.27 %; average 94.73"],
    ["π0.5 teacher", "90.0", "87.0", "about 94.5", ""],
    ["student from π0.5", "96.5 (+7.22 %)", "93.0 (+6.90 %)", "94.0 (−0.53 %)", ""],
]
"""Per cent of 10 tasks × 20 episodes a suite, at most 520 steps, as quoted (arXiv 2605.16241)."""


def study(config: StudyDistillationConfig) -> Location:
    """Run what is missing, write the results; returns the path of the page."""
    begin(config.budget.out, config)
    objectives = of_suites(config.suites, config.objectives)
    workshop = Workshop(config.budget)
    teachers: dict[str, Outcomes] = {}
    students: dict[str, dict[int, Location]] = {}
    training = []
    for seed in workshop.seeds:
        for suite in config.suites:
            data = workshop.dataset(suite)
            teacher = workshop.evaluate(workshop.evaluation(config.budget.teacher, suite))
            if teacher is not None:
                teachers[suite] = closed_loop.outcomes({0: teacher})
            student = None
            if data is not None:
                own = fields(find_method(objectives[suite]).config)
                alpha: dict[str, Any] = {"alpha": config.alpha} if "alpha" in {field.name for field in own} else {}
                student = workshop.train(workshop.training(data, seed, objectives[suite], **alpha))
            if student is None:
                continue
            run, summary = student
            training.append(
                {
                    "suite": suite,
                    "seed": seed,
                    "objective": objectives[suite],
                    "near": summary.validation["near"],
                    "episodes": asdict(summary.episodes),
                    "epochs": summary.epochs,
                    "steps": summary.steps,
                    "training_seconds": summary.training_seconds,
                }
            )
            evaluation = workshop.evaluate(workshop.evaluation(run, suite, videos=config.videos))
            if evaluation is not None:
                students.setdefault(suite, {})[seed] = evaluation
    of_students = {suite: closed_loop.outcomes(of) for suite, of in students.items()}
    numbers = {**measure(teachers, of_students), "training": training, "paper": PAPER}
    return write("distillation", config, workshop, numbers, page(numbers, workshop), plot(numbers))


def of_suites(suites: Sequence[str], objectives: Sequence[str]) -> dict[str, str]:
    """Suite -> objective. Raises UserError for one that there is not, or another number of them."""
    for objective in objectives:
        check_objective(objective)
    if len(objectives) not in (1, len(suites)):
        raise UserError(f"--objectives: give one, or one for each of the {len(suites)} suites, not {len(objectives)}")
    return dict(zip(suites, objectives if len(objectives) > 1 else [*objectives] * len(suites), strict=True))


def measure(teachers: Mapping[str, Outcomes], students: Mapping[str, Outcomes]) -> dict[str, Any]:
    """Suites in which both were measured: n and k of each ("ever"), rates, relative change; and all suites as one."""
    suites = [suite for suite in teachers if suite in students]
    each = {suite: compare(teachers[suite], students[suite]) for suite in suites}
    together = (
        compare([o for suite in suites for o in teachers[suite]], [o for suite in suites for o in students[suite]])
        if suites
        else None
    )
    return {"suites": each, "together": together}


def compare(teacher: Outcomes, student: Outcomes) -> dict[str, Any]:
    """Teacher and student on the same states, with what failed."""
    measured = {"teacher": closed_loop.rates(teacher), "student": closed_loop.rates(student)}
    tasks = sorted({(outcome.suite, outcome.task) for outcome in student})
    return {
        **{who: {"n": rates["ever"].n, "k": rates["ever"].k, **rates} for who, rates in measured.items()},
        "seeds": closed_loop.by_seed(student),
        "relative": {kind: relative_change(student, teacher, kind) for kind in closed_loop.KINDS},
        "paired": closed_loop.compare(student, teacher, by_seed=False),
        "tasks": [
            {
                "suite": suite,
                "task": task,
                "instruction": mine[0].instruction,
                "ever": success_of([outcome.success_ever for outcome in mine]),
                "failed": [f"{o.init} ({o.metrics['last_phase']})" for o in mine if not o.success_ever],
            }
            for suite, task in tasks
            if (mine := [outcome for outcome in student if (outcome.suite, outcome.task) == (suite, task)])
        ],
    }


def relative_change(student: Outcomes, teacher: Outcomes, kind: str) -> dict[str, Any] | None:
    """Student's success rate by the teacher's, less 1, on the same starts; None where they share none."""
    own, other = closed_loop.matched(student, teacher, kind, by_seed=False)
    if not own:
        return None
    found = paired_ratio(own, other)
    if found["ratio"] is None:
        return {"n": found["n"], "change": None, "interval95": None}
    return {"n": found["n"], "change": found["ratio"] - 1, "interval95": [end - 1 for end in found["interval95"]]}


def page(numbers: Mapping[str, Any], workshop: Workshop) -> str:
    """The Markdown page."""
    rates, relative, failures = [], [], []
    for suite, measured in [*numbers["suites"].items(), ("all", numbers["together"])]:
        if measured is None:
            continue
        for who in ("teacher", "student"):
            flips = window_cell(measured[who]["flips_per_240"])
            rates.append([suite if who == "teacher" else "", who, *success_cells(measured[who]), flips])
        change = measured["relative"]
        relative.append(
            [suite, change_cell(change["ever"]), change_cell(change["final"]), difference(measured["paired"])]
        )
    for measured in numbers["suites"].values():
        for task in measured["tasks"]:
            if task["failed"]:
                name, success = f"{task['suite']} {task['task']}, {task['instruction']}", task["ever"]
                failures.append(f"- {name}: {success.k}/{success.n}; {last_phases(task['failed'])}")
    trained = "; ".join(
        f"{record['suite']} seed {record['seed']}, {record['objective']}: {record['episodes']['train']} episodes, "
        f"{record['steps']} steps, {record['training_seconds'] / 60:.0f} min"
        for record in numbers["training"]
    )
    text = f"""# Distillation

{whole(workshop)} Trained: {trained or "none"}.

Success with 95 % Wilson interval, the field's step budgets. Relative: the student's rate by the teacher's on the same
states, less 1, with the 95 % interval of Bonett and Price (2006) for ratios of paired proportions. Paired: difference
in success, exact McNemar p. Students act as deployed (docs/deploy.md).

{markdown_table(["suite", "policy", "success ever", "after release", "gripper flips / 240 steps"], rates)}

The student against its teacher:

{markdown_table(["suite", "relative, ever", "relative, after release", "paired, ever"], relative)}

The paper's, of other teachers and a larger student, per cent:

{markdown_table(["", "object", "spatial", "goal", "average"], PAPER)}
"""
    if failures:
        lines = "\n".join(failures)
        text += f"""
Where the student failed: successes, and how many failures ended in which phase by the rules. The starts are in
distillation.json, as `suites.NAME.tasks.failed`; videos of some are in the evaluation's folder.

{lines}
"""
    return text


def last_phases(failed: Sequence[str]) -> str:
    """`s0037 (completed)` … -> `8 approaching, 1 completed`, the most frequent first."""
    counts = Counter(each.partition("(")[2].rstrip(")") for each in failed)
    return ", ".join(f"{count} {phase}" for phase, count in counts.most_common())


def change_cell(change: Mapping[str, Any] | None) -> str:
    """`-1.5 % [-3.4, +0.4]`."""
    if change is None or change["change"] is None:
        return ""
    low, high = (100 * end for end in change["interval95"])
    return f"{100 * change['change']:+.1f} % [{low:+.1f}, {high:+.1f}]"


def plot(numbers: Mapping[str, Any]) -> Figure:
    """Success of teacher and student in each suite, with intervals."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    panel = figure.add_subplot()
    names = list(numbers["suites"])
    for offset, who, colour in ((-0.1, "teacher", "#222222"), (0.1, "student", "#0072b2")):
        success, errors = success_points([numbers["suites"][suite][who] for suite in names])
        xs = [x + offset for x in range(len(names))]
        panel.errorbar(xs, success, yerr=errors, fmt="o", capsize=3, color=colour, label=who)
    panel.set_xticks(range(len(names)), names)
    panel.set_ylabel("success ever, %")
    if names:
        panel.legend(frameon=False, fontsize=8)
    return figure
