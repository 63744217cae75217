"""Phase granularity: how evenly 3 to 13 phases cut episodes, and the student's accuracy with each (VLA-AD, Table 4)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vlaad_ray.configs import Location, StudyPhasesConfig
from vlaad_ray.experiments.markdown import markdown_table
from vlaad_ray.experiments.studies.pages import span, whole, write
from vlaad_ray.experiments.studies.workshop import Workshop
from vlaad_ray.runtime.record import begin
from vlaad_ray.summaries import TrainSummary

PAPER = {
    7: {"accuracy": 59.8},
    9: {"distance": 0.14, "accuracy": 63.6},
    11: {"accuracy": 59.3},
}
"""|CV - 1| and mean validation accuracy in per cent, as far as they are quoted (arXiv 2605.16241)."""


def study(config: StudyPhasesConfig) -> Location:
    """Run what is missing, write the results; returns the path of the page."""
    begin(config.budget.out, config)
    workshop = Workshop(config.budget)
    counts: dict[str, dict[int, Mapping[str, int]]] = {}
    for suite in config.suites:
        for rate in config.flip_rates:
            data = workshop.dataset(suite, rate)
            if data is not None:
                counts[set_name(suite, config.budget.teacher, rate)] = {
                    taxonomy: workshop.annotations(data, taxonomy)[1].frames_per_phase for taxonomy in config.taxonomies
                }
    accuracies = []
    for seed in workshop.seeds:  # seed by seed, so that what is cut off is a seed, not a taxonomy
        trainings = {
            (suite, taxonomy): workshop.training(data, seed, "dual_path", taxonomy)
            for suite in config.train_suites
            if (data := workshop.dataset(suite)) is not None
            for taxonomy in config.taxonomies
        }
        for (suite, taxonomy), student in zip(trainings, workshop.train_all(list(trainings.values())), strict=True):
            if student is not None:
                accuracies.append(accuracy_record(suite, taxonomy, seed, student[1]))
    numbers = {"frames_per_phase": counts, "cv": variations(counts), "accuracy": accuracies, "paper": PAPER}
    return write("phases", config, workshop, numbers, page(numbers, workshop), plot(numbers))


def set_name(suite: str, teacher: str, flip_rate: float) -> str:
    return f"{suite}, {teacher}" + (f" with {100 * flip_rate:g} % flips" if flip_rate else "")


def accuracy_record(suite: str, taxonomy: int, seed: int, summary: TrainSummary) -> dict[str, Any]:
    validation = summary.validation
    return {
        "suite": suite,
        "taxonomy": taxonomy,
        "seed": seed,
        "near": validation["near"],
        "exact": validation["exact"],
        "frames": validation["frames"],
        "epochs": summary.epochs,
        "steps": summary.steps,
    }


def coefficient_of_variation(counts: Sequence[int]) -> float:
    """Standard deviation of the counts (over all of them, not a sample) by their mean; a phase without frames is 0."""
    return statistics.pstdev(counts) / statistics.fmean(counts)


def variations(counts: Mapping[str, Mapping[int, Mapping[str, int]]]) -> dict[int, dict[str, float]]:
    """Taxonomy -> teacher-suite set -> CV over its phases."""
    taxonomies = sorted({taxonomy for of_set in counts.values() for taxonomy in of_set})
    return {
        taxonomy: {name: coefficient_of_variation(list(of_set[taxonomy].values())) for name, of_set in counts.items()}
        for taxonomy in taxonomies
    }


def page(numbers: Mapping[str, Any], workshop: Workshop) -> str:
    """The Markdown page."""
    accuracy = numbers["accuracy"]
    taxonomies = sorted({*numbers["cv"], *(record["taxonomy"] for record in accuracy)})
    rows = []
    for taxonomy in taxonomies:
        cv = list(numbers["cv"].get(taxonomy, {}).values())
        mine = [record for record in accuracy if record["taxonomy"] == taxonomy]
        quoted = PAPER.get(taxonomy, {})
        rows.append(
            [
                str(taxonomy),
                span(cv, digits=2),
                f"{abs(statistics.fmean(cv) - 1):.2f}" if cv else "",
                span([record["near"] for record in mine], 100),
                span([record["exact"] for record in mine], 100),
                f"{quoted['distance']:.2f}" if "distance" in quoted else "",
                f"{quoted['accuracy']:.1f}" if "accuracy" in quoted else "",
            ]
        )
    headings = ["phases", "CV", "\\|mean CV − 1\\|", "accuracy, near, %", "exact, %"]
    headings += ["paper: \\|CV − 1\\|", "paper: accuracy, %"]
    frames = {name: sum(next(iter(of_set.values())).values()) for name, of_set in numbers["frames_per_phase"].items()}
    steps = sorted({record["steps"] for record in accuracy})
    trained = (
        f"{len(accuracy)} students of {', '.join(map(str, steps))} steps on "
        f"{', '.join(sorted({record['suite'] for record in accuracy}))}, "
        f"{accuracy[0]['frames']} held-out frames"
        if accuracy
        else "none"
    )
    sets = ", ".join(f"{name}: {count} frames" for name, count in frames.items()) or "none"
    return f"""# Phase granularity

{whole(workshop)} Trained: {trained}.

CV: standard deviation over mean of the frame counts of a taxonomy's phases, a value for each set of episodes ({sets}).
Accuracy: of the path that is deployed (no description), on held-out episodes, mean over all actions of a chunk and all
dimensions; near: within 8 of 256 bins. Cells: mean (least–greatest, n). The paper's accuracy is of another student, on
other data; empty: not quoted.

{markdown_table(headings, rows)}
"""


def plot(numbers: Mapping[str, Any]) -> Figure:
    """CV and accuracy over the number of phases: a point for each set, or seed, and their mean."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for taxonomy, cv in numbers["cv"].items():
        left.plot([taxonomy] * len(cv), list(cv.values()), "o", color="#0072b2", alpha=0.45)
    means = {taxonomy: statistics.fmean(cv.values()) for taxonomy, cv in numbers["cv"].items() if cv}
    left.plot(list(means), list(means.values()), color="#0072b2")
    left.axhline(1, color="#888888", linewidth=0.8, linestyle="--")
    left.set(xlabel="phases", ylabel="CV of frames per phase")
    by_taxonomy: dict[int, list[float]] = {}
    for record in numbers["accuracy"]:
        by_taxonomy.setdefault(record["taxonomy"], []).append(100 * record["near"])
    for taxonomy, near in by_taxonomy.items():
        right.plot([taxonomy] * len(near), near, "o", color="#d55e00", alpha=0.45)
    ordered = sorted(by_taxonomy)
    right.plot(ordered, [statistics.fmean(by_taxonomy[taxonomy]) for taxonomy in ordered], color="#d55e00")
    right.set(xlabel="phases", ylabel="held-out accuracy (near), %")
    return figure
