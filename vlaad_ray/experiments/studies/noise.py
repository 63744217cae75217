"""Noise: students of a teacher that flips its gripper. Do the objectives with semantics filter it, beside cloning?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vlaad_ray.configs import Location, StudyNoiseConfig
from vlaad_ray.configs.studies import Gripper
from vlaad_ray.experiments.markdown import markdown_table
from vlaad_ray.experiments.studies import closed_loop
from vlaad_ray.experiments.studies.closed_loop import difference, success_cells, success_points, window_cell
from vlaad_ray.experiments.studies.pages import span, whole, write
from vlaad_ray.experiments.studies.workshop import Trained, Workshop, check_objective
from vlaad_ray.runtime.record import begin

WINDOWS = ("flips_per_240", "taken_back_per_240", "needless_per_240")
COLOURS = {"bc": "#8a8a8a", "dual_path": "#0072b2", "auxiliary": "#009e73", "both": "#d55e00", "teacher": "#222222"}


def study(config: StudyNoiseConfig) -> Location:
    """Run what is missing, write the results; returns the path of the page."""
    begin(config.budget.out, config)
    for objective in config.objectives:
        check_objective(objective)
    workshop = Workshop(config.budget)
    teachers: dict[float, Location] = {}
    trained: dict[tuple[float, str, int], Trained] = {}
    evaluated: dict[tuple[float, str, Gripper], dict[int, Location]] = {}
    for seed in workshop.seeds:  # seed by seed, so that what is cut off is a seed, not an objective
        trainings = {}
        for rate in config.flip_rates:
            data = workshop.dataset(config.suite, rate)
            if data is None:
                continue
            teacher = workshop.evaluate(workshop.evaluation(config.budget.teacher, config.suite, flip_rate=rate))
            if teacher is not None:
                teachers[rate] = teacher
            for objective in config.objectives:
                trainings[rate, objective] = workshop.training(data, seed, objective)
        for (rate, objective), student in zip(trainings, workshop.train_all(list(trainings.values())), strict=True):
            if student is not None:
                trained[rate, objective, seed] = student
        evaluations = {
            (rate, objective, gripper): workshop.evaluation(run, config.suite, gripper=gripper)
            for gripper in config.grippers
            for (rate, objective, of_seed), (run, _) in trained.items()
            if of_seed == seed
        }
        for cell, evaluation in zip(evaluations, workshop.evaluate_all(list(evaluations.values())), strict=True):
            if evaluation is not None:
                evaluated.setdefault(cell, {})[seed] = evaluation
    teacher_outcomes = {rate: closed_loop.outcomes({0: out}) for rate, out in teachers.items()}
    student_outcomes = {cell: closed_loop.outcomes(of) for cell, of in evaluated.items()}
    numbers = {
        "suite": config.suite,
        "teachers": [{"flip_rate": rate, **closed_loop.rates(of)} for rate, of in teacher_outcomes.items()],
        "students": student_cells(student_outcomes, teacher_outcomes),
        "training": [
            {
                "flip_rate": rate,
                "objective": objective,
                "seed": seed,
                "near": summary.validation["near"],
                "epochs": summary.epochs,
                "steps": summary.steps,
            }
            for (rate, objective, seed), (_, summary) in trained.items()
        ],
    }
    return write("noise", config, workshop, numbers, page(numbers, workshop), plot(numbers))


def student_cells(
    students: Mapping[tuple[float, str, Gripper], closed_loop.Outcomes], teachers: Mapping[float, closed_loop.Outcomes]
) -> list[dict[str, Any]]:
    """One record for each flip rate, objective and gripper: over all seeds, against the teacher and against bc."""
    cells = []
    for (rate, objective, gripper), of in sorted(students.items(), key=lambda cell: cell[0][0]):
        plain = students.get((rate, "bc", gripper))
        measured = closed_loop.rates(of)
        teacher = closed_loop.rates(teachers[rate]) if rate in teachers else None
        cells.append(
            {
                "flip_rate": rate,
                "objective": objective,
                "gripper": gripper,
                "seeds": closed_loop.by_seed(of),
                **measured,
                "flips_of_teachers": share_of(teacher, measured, "flips_per_240"),
                "needless_of_teachers": share_of(teacher, measured, "needless_per_240"),
                "against_teacher": closed_loop.compare(of, teachers[rate], by_seed=False) if rate in teachers else None,
                "against_bc": closed_loop.compare(of, plain, by_seed=True) if plain and objective != "bc" else None,
            }
        )
    return cells


def share_of(teacher: Mapping[str, Any] | None, student: Mapping[str, Any], name: str) -> float | None:
    """A student's rate by its teacher's; None where the teacher has none, or was not measured."""
    if teacher is None or not teacher[name]["rate"]:
        return None
    return float(student[name]["rate"] / teacher[name]["rate"])


def page(numbers: Mapping[str, Any], workshop: Workshop) -> str:
    """The Markdown page."""
    success: list[list[str]] = []
    paired: list[list[str]] = []
    flipped: list[list[str]] = []
    teachers = {teacher["flip_rate"]: teacher for teacher in numbers["teachers"]}
    for rate in sorted({*teachers, *(cell["flip_rate"] for cell in numbers["students"])}):
        flips = f"{100 * rate:g} %"
        if (teacher := teachers.get(rate)) is not None:
            ever, final = success_cells(teacher)
            success.append([flips, "teacher", "", ever, "", final])
            flipped.append([flips, "teacher", "", *(window_cell(teacher[name]) for name in WINDOWS), "", ""])
        for cell in (cell for cell in numbers["students"] if cell["flip_rate"] == rate):
            who = [flips, cell["objective"], cell["gripper"]]
            ever, final = success_cells(cell)
            success.append([*who, ever, ", ".join(str(seed["ever"]) for seed in cell["seeds"]), final])
            paired.append([*who, difference(cell["against_teacher"]), difference(cell["against_bc"])])
            shares = (cell[f"{name}_of_teachers"] for name in ("flips", "needless"))
            of_teacher = (f"{100 * share:.0f} %" if share is not None else "" for share in shares)
            flipped.append([*who, *(window_cell(cell[name]) for name in WINDOWS), *of_teacher])
    accuracy: dict[tuple[float, str], list[float]] = {}
    for record in numbers["training"]:
        accuracy.setdefault((record["flip_rate"], record["objective"]), []).append(record["near"])
    who = ["set", "policy", "gripper"]
    steps = ", ".join(map(str, sorted({record["steps"] for record in numbers["training"]}))) or "no"
    learnt = [[f"{100 * rate:g} %", objective, span(near, 100)] for (rate, objective), near in accuracy.items()]
    return f"""# Noise of the teacher

{numbers["suite"]}. {whole(workshop)} Students trained for {steps} steps.

Set: the teacher's flips. A teacher with x % turns this share of its gripper targets and takes it back after one or two
steps, in the data and in its own evaluation; no flips are injected into what students do. Gripper: steady, as students
are deployed (a command stands for 10 steps or more, so that none is taken back; docs/deploy.md), or raw, exactly as the
student says. Taken back: flips that disappear when runs of up to 3 steps are taken out (docs/noise.md). Needless: all
beyond two an episode, to close and to open. Intervals: 95 %, Wilson for success, ratio estimator over episodes for
flips; those of students are over the episodes of all seeds, which share their starts, so they are somewhat too narrow.
Paired: difference in success "ever" on the same starts (against bc: and the same seed), exact McNemar p over all.

{markdown_table([*who, "success ever", "by seed", "after release"], success)}

Paired:

{markdown_table([*who, "against the teacher", "against bc"], paired)}

Flips / 240 steps, and in per cent of the teacher's:

{markdown_table([*who, "all", "taken back", "needless", "all, of teacher's", "needless, of teacher's"], flipped)}

Accuracy (near, %) on held-out episodes of the noisy data, mean (least–greatest, n seeds):

{markdown_table(["set", "objective", "accuracy"], learnt)}
"""


def plot(numbers: Mapping[str, Any]) -> Figure:
    """Success and flips over the rate of flips, a line for each policy; students as deployed, if that was measured."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    gripper = max((cell["gripper"] for cell in numbers["students"]), default="")
    shown = [cell for cell in numbers["students"] if cell["gripper"] == gripper]
    lines: dict[str, Sequence[Mapping[str, Any]]] = {"teacher": numbers["teachers"]}
    for objective in dict.fromkeys(cell["objective"] for cell in shown):
        lines[objective] = [cell for cell in shown if cell["objective"] == objective]
    for number, (name, cells) in enumerate(lines.items()):
        xs = [100 * cell["flip_rate"] + 0.06 * (number - len(lines) / 2) for cell in cells]
        success, errors = success_points(cells)
        colour = COLOURS.get(name)
        left.errorbar(xs, success, yerr=errors, marker="o", capsize=2, color=colour, label=name)
        right.plot(xs, [cell["flips_per_240"]["rate"] for cell in cells], marker="o", color=colour)
    left.set(xlabel="gripper flips of the teacher, %", ylabel="success ever, %")
    right.set(xlabel="gripper flips of the teacher, %", ylabel="gripper flips / 240 steps")
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(f"students' gripper: {gripper}", fontsize=9)
    return figure
