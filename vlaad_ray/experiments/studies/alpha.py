"""Loss weight: the student's accuracy and success over alpha, the weight of the path without description, by suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from vlaad_ray.configs import Location, StudyAlphaConfig
from vlaad_ray.experiments.markdown import markdown_table
from vlaad_ray.experiments.studies import closed_loop
from vlaad_ray.experiments.studies.closed_loop import difference, success_cells, success_points
from vlaad_ray.experiments.studies.pages import span, whole, write
from vlaad_ray.experiments.studies.workshop import Workshop
from vlaad_ray.runtime.record import begin

PAPER = {"libero_object": 1.0, "libero_goal": 1.0, "libero_spatial": 0.5}
"""What the paper chose out of 0.3, 0.5, 0.8 and 1.0 (arXiv 2605.16241)."""


def study(config: StudyAlphaConfig) -> Location:
    """Run what is missing, write the results; returns the path of the page."""
    begin(config.budget.out, config)
    workshop = Workshop(config.budget)
    evaluated: dict[tuple[str, float], dict[int, Location]] = {}
    training = []
    for seed in workshop.seeds:
        trainings = {
            (suite, alpha): workshop.training(data, seed, "dual_path", alpha=alpha)
            for suite in config.suites
            if (data := workshop.dataset(suite)) is not None
            for alpha in config.alphas
        }
        evaluations = {}
        for (suite, alpha), student in zip(trainings, workshop.train_all(list(trainings.values())), strict=True):
            if student is None:
                continue
            run, summary = student
            near = summary.validation["near"]
            steps = {"epochs": summary.epochs, "steps": summary.steps}
            training.append({"suite": suite, "alpha": alpha, "seed": seed, "near": near, **steps})
            evaluations[suite, alpha] = workshop.evaluation(run, suite)
        for cell, evaluation in zip(evaluations, workshop.evaluate_all(list(evaluations.values())), strict=True):
            if evaluation is not None:
                evaluated.setdefault(cell, {})[seed] = evaluation
    numbers = {
        "training": training,
        "students": cells({cell: closed_loop.outcomes(of) for cell, of in evaluated.items()}),
        "paper": PAPER,
    }
    return write("alpha", config, workshop, numbers, page(numbers, workshop), plot(numbers))


def cells(students: Mapping[tuple[str, float], closed_loop.Outcomes]) -> list[dict[str, Any]]:
    """One record for each suite and alpha: rates over all seeds, against alpha = 1 of the same suite and seed."""
    return [
        {
            "suite": suite,
            "alpha": alpha,
            "seeds": closed_loop.by_seed(of),
            **closed_loop.rates(of),
            "against_1": closed_loop.compare(of, students[suite, 1.0], by_seed=True)
            if alpha != 1.0 and (suite, 1.0) in students
            else None,
        }
        for (suite, alpha), of in sorted(students.items())
    ]


def page(numbers: Mapping[str, Any], workshop: Workshop) -> str:
    """The Markdown page."""
    measured = {(cell["suite"], cell["alpha"]): cell for cell in numbers["students"]}
    accuracy: dict[tuple[str, float], list[float]] = {}
    for record in numbers["training"]:
        accuracy.setdefault((record["suite"], record["alpha"]), []).append(record["near"])
    success, learnt = [], []
    for (suite, alpha), near in sorted(accuracy.items()):
        cell = measured.get((suite, alpha))
        closed = [*success_cells(cell), difference(cell["against_1"])] if cell is not None else ["", "", ""]
        success.append([suite, f"{alpha:g}", *closed])
        learnt.append([suite, f"{alpha:g}", span(near, 100), "chosen" if PAPER.get(suite) == alpha else ""])
    steps = ", ".join(map(str, sorted({record["steps"] for record in numbers["training"]}))) or "no"
    return f"""# Weight of the path without description

{whole(workshop)} Students trained with L_full + α · L_img for {steps} steps; in action as deployed (docs/deploy.md).

Success with 95 % Wilson interval over the episodes of all seeds; paired with α = 1 of the same suite, seed and start
(success "ever", exact McNemar p).

{markdown_table(["suite", "α", "success ever", "after release", "against α = 1"], success)}

Accuracy: of the path without description, which is the one that is deployed, on held-out episodes; mean
(least–greatest, n seeds). With α = 0 that path is not trained at all.

{markdown_table(["suite", "α", "accuracy, near, %", "paper"], learnt)}
"""


def plot(numbers: Mapping[str, Any]) -> Figure:
    """Success over alpha, a line for each suite."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    panel = figure.add_subplot()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
    suites = list(dict.fromkeys(cell["suite"] for cell in numbers["students"]))
    for number, suite in enumerate(suites):
        mine = [cell for cell in numbers["students"] if cell["suite"] == suite]
        success, errors = success_points(mine)
        xs = [cell["alpha"] + 0.006 * (number - len(suites) / 2) for cell in mine]
        panel.errorbar(xs, success, yerr=errors, marker="o", capsize=2, color=colours[number % 5], label=suite)
    panel.set(xlabel="α", ylabel="success ever, %")
    if suites:
        panel.legend(frameon=False, fontsize=8)
    return figure
