"""Budgets: a VLA whose layers are skipped, by a router or for good, with ActDistill's losses or without, arm by arm.

Every arm starts from the same teacher, and trains as long on the same data with the same settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from vlaad_ray import plugins, store
from vlaad_ray.configs import (
    ActDistillConfig,
    DistilConfig,
    HeadsSettings,
    Location,
    ProbeConfig,
    StudyFlopsConfig,
    TrainConfig,
)
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.distil import distil, probe
from vlaad_ray.distil.routes import cost_of, write_drawn, write_on_route
from vlaad_ray.distil.stage import counted_routes, read_routes, training_of
from vlaad_ray.experiments.bench.latency import WARM, time_calls
from vlaad_ray.experiments.markdown import markdown_table
from vlaad_ray.experiments.studies import closed_loop
from vlaad_ray.experiments.studies.closed_loop import Outcomes, difference, success_cells, success_points
from vlaad_ray.experiments.studies.pages import whole, write
from vlaad_ray.experiments.studies.workshop import Workshop, named
from vlaad_ray.methods.actdistill.selecting import ROUNDING
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.vla import routes
from vlaad_ray.runtime.record import begin
from vlaad_ray.summaries import ProbeSummary, RoutesSummary
from vlaad_ray.types import Observation

PHASES = 9
FULL = 1.0


@dataclass(frozen=True)
class Arm:
    words: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the distillation, beside its budget."""
    head: str = "graph"
    against: int = 6
    """The arm that it is compared with, at the same budget."""
    made_of: int = 0
    """The arm whose student it is, with other routes; 0: a training of its own."""


ARMS: Mapping[int, Arm] = {
    1: Arm("full depth, trained as long", {"select": "first", "losses": "task"}, against=1),
    2: Arm("first layers", {"select": "first", "losses": "task"}, against=3),
    3: Arm("layers by GateProbe", {"select": "gateprobe", "losses": "task"}, against=1),
    4: Arm("layers by GateProbe, all losses", {"select": "gateprobe"}, against=3),
    5: Arm("router, task loss alone", {"losses": "task"}),
    6: Arm("ActDistill: router, all losses", against=3),
    7: Arm("6 with mean-pooling heads", head="mean"),
    8: Arm("6, always its commonest route", made_of=6),
    9: Arm("6 with the gates of another frame", made_of=6),
    10: Arm("6 with the authors' gating", {"gating": "authors"}),
}


class Cell(NamedTuple):
    """An arm at a budget."""

    arm: int
    share: float


@dataclass(frozen=True)
class Teacher:
    """What all arms of a seed start from."""

    run: Location
    data: Location
    notes: Location
    seed: int


def study(config: StudyFlopsConfig) -> Location:
    """Run what is missing, write the results; returns the path of the page."""
    begin(config.budget.out, config)
    plugins.use("vlaad_ray.models.vla.drawn")  # arm 9's architecture, for those who evaluate it
    workshop = Workshop(config.budget)
    evaluated: dict[Cell, dict[int, Location]] = {}
    students: dict[Cell, list[dict[str, Any]]] = {}
    impossible: list[float] = []
    for seed in workshop.seeds:
        if (teacher := taught(config, workshop, seed)) is None:
            workshop.not_run.append(f"all arms of seed {seed}")
            continue
        impossible = [share for share in config.shares if share + ROUNDING < least_share(teacher)]
        for arm in config.arms:
            for share in [FULL] if arm == 1 else [each for each in config.shares if each not in impossible]:
                run = student(config, workshop, teacher, Cell(arm, share))
                if run is None:
                    workshop.not_run.append(f"arm {arm} at a budget of {share:g}, seed {seed}")
                    continue
                outcome = workshop.evaluate(workshop.evaluation(run, config.suite))
                if outcome is None:
                    continue
                evaluated.setdefault(Cell(arm, share), {})[seed] = outcome
                record = {"seed": seed, **measured(config, teacher, run)}
                students.setdefault(Cell(arm, share), []).append(record)
    numbers = {
        "suite": config.suite,
        "impossible": impossible,
        "cells": cells(students, {cell: closed_loop.outcomes(of) for cell, of in evaluated.items()}),
        "not_in": [arm for arm in ARMS if arm not in config.arms],
    }
    return write("budget", config, workshop, numbers, page(numbers, workshop), plot(numbers))


def taught(config: StudyFlopsConfig, workshop: Workshop, seed: int) -> Teacher | None:
    """The data and the teacher of a seed; None: there was no time."""
    data = workshop.dataset(config.suite)
    if data is None:
        return None
    trained = workshop.train(workshop.training(data, seed, "bc"))
    return Teacher(trained[0], data, workshop.annotations(data, PHASES)[0], seed) if trained else None


def least_share(teacher: Teacher) -> float:
    whole = cost_of(teacher.run / "checkpoint")
    return (whole.fixed + 2 * whole.layer) / (whole.fixed + whole.depth * whole.layer)


def probes(config: StudyFlopsConfig, workshop: Workshop, teacher: Teacher, head: Any) -> Location | None:
    """What the teacher's heads say, made when missing; None: there was no time."""
    training = usual(config, teacher, config.probe_epochs)
    wanted = ProbeConfig(teacher.run / "checkpoint", HeadsSettings(head=head), train=training)
    out = config.budget.out / "probes" / named(f"{teacher.run.name}-{head}", wanted)
    wanted = dataclasses.replace(wanted, train=dataclasses.replace(training, out=out))
    if store.read_summary(out, ProbeSummary) is None:
        if not workshop.has_time(wanted):
            return None
        probe(wanted)
    return out


def usual(config: StudyFlopsConfig, teacher: Teacher, epochs: int) -> TrainConfig:
    """What trainings that start from the teacher have in common."""
    budget = config.budget
    return TrainConfig(
        data=teacher.data,
        out=budget.out,
        epochs=epochs,
        lr=3e-4,
        batch_size=budget.batch_size,
        seed=teacher.seed,
        validation_fraction=budget.validation_fraction,
        max_minutes=budget.max_minutes,
        workers=budget.workers,
        gpus_per_worker=budget.gpus_per_worker,
        wait_for_nodes_s=budget.fleet.wait_for_nodes_s,
        frame_cache=budget.out / "frames",
    )


def distillation(config: StudyFlopsConfig, teacher: Teacher, cell: Cell, kept: Location | None) -> DistilConfig:
    """What trains the student of a cell."""
    arm = ARMS[cell.arm]
    settings = ActDistillConfig(probes=kept, budget=cell.share, **arm.settings)
    training = dataclasses.replace(usual(config, teacher, config.distil_epochs), annotations=teacher.notes)
    wanted = DistilConfig(teacher.run / "checkpoint", settings, train=training)
    words = f"{teacher.run.name}-arm{cell.arm}-budget{cell.share:g}"
    out = config.budget.out / "runs" / named(words, training_of(wanted))
    return dataclasses.replace(wanted, train=dataclasses.replace(training, out=out))


def student(config: StudyFlopsConfig, workshop: Workshop, teacher: Teacher, cell: Cell) -> Location | None:
    """The run directory of a cell's student, made when missing; None: there was no time."""
    arm = ARMS[cell.arm]
    if arm.made_of:
        return variant(config, workshop, teacher, cell)
    needed = arm.settings.get("losses") != "task" or arm.settings.get("select") == "gateprobe"
    kept = probes(config, workshop, teacher, arm.head) if needed else None
    if needed and kept is None:
        return None
    wanted = distillation(config, teacher, cell, kept)
    if read_routes(training_of(wanted)) is None:
        if not workshop.has_time(training_of(wanted)):
            return None
        distil(wanted)
    return wanted.out


def variant(config: StudyFlopsConfig, workshop: Workshop, teacher: Teacher, cell: Cell) -> Location | None:
    """A student that is another arm's with other routes: arms 8 and 9."""
    run = student(config, workshop, teacher, Cell(ARMS[cell.arm].made_of, cell.share))
    if run is None:
        return None
    out = run.parent / f"{run.name}-arm{cell.arm}"
    if not (out / "checkpoint" / checkpoint.CONFIG).exists():
        kept = probes(config, workshop, teacher, "graph")
        training = training_of(distillation(config, teacher, Cell(ARMS[cell.arm].made_of, cell.share), kept))
        taken = read_routes(training)
        assert taken is not None
        if cell.arm == 8:
            store.write_json(out / "routes.json", fixed_routes(taken))
            write_on_route(run / "checkpoint", taken.commonest, out / "checkpoint")
        else:
            store.write_json(out / "routes.json", taken)
            write_drawn(run / "checkpoint", counted_routes(training), out / "checkpoint")
    return out


def fixed_routes(taken: RoutesSummary) -> RoutesSummary:
    """Of the student that always takes the commonest route."""
    return dataclasses.replace(
        taken,
        share=taken.commonest_share,
        layers=float(sum(layer_runs(taken))),
        by_layer=tuple(map(float, layer_runs(taken))),
        by_phase={phase: float(sum(layer_runs(taken))) for phase in taken.by_phase},
        routes=1,
        commonest_frames=1.0,
    )


def layer_runs(taken: RoutesSummary) -> tuple[bool, ...]:
    return routes.parse(taken.commonest, len(taken.by_layer), "the commonest route")


def measured(config: StudyFlopsConfig, teacher: Teacher, run: Location) -> dict[str, Any]:
    """FLOPs, layers and milliseconds of a student, kept beside it."""
    place = run / "latency.json"
    if not place.exists():
        store.write_json(place, time_policy(run / "checkpoint", teacher.data, config.timed))
    taken = store.read_json(run / "routes.json")
    names = ("share", "layers", "by_layer", "by_phase", "routes", "commonest", "commonest_frames")
    return {**{name: taken[name] for name in names}, **store.read_json(place)}


def time_policy(student: Location, data: Location, calls: int) -> dict[str, float]:
    """p50 and p99 of whole answers on frames of the data, as routes depend on what is seen; one thread."""
    policy = StudentPolicy.from_pretrained(student)
    episode = store.read_episode(store.list_episodes(data)[0])
    pictured = [
        Observation(episode.instruction, proprio, images)
        for step, proprio in enumerate(episode.proprio)
        if len(images := {name: image for name, seen in episode.images.items() if (image := seen[step]) is not None})
        == len(policy.cameras)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timed = time_calls(lambda number: policy.infer(pictured[number % len(pictured)]), WARM, calls)
    torch.set_num_threads(threads)
    return {name: timed[name] for name in ("p50_ms", "p99_ms")}


def cells(students: Mapping[Cell, Sequence[Mapping[str, Any]]], of: Mapping[Cell, Outcomes]) -> list[dict[str, Any]]:
    """A record for each arm and budget: success over all seeds, and paired with the arm that it is to beat."""
    found = []
    for cell, records in students.items():
        other = Cell(ARMS[cell.arm].against, FULL if ARMS[cell.arm].against == 1 else cell.share)
        found.append(
            {
                "arm": cell.arm,
                "budget": cell.share,
                "students": list(records),
                "seeds": closed_loop.by_seed(of[cell]),
                **closed_loop.rates(of[cell]),
                "against": other.arm,
                "paired": closed_loop.compare(of[cell], of[other], by_seed=True)
                if other in of and other != cell
                else None,
            }
        )
    return found


def mean(cell: Mapping[str, Any], name: str) -> float:
    values = [float(student[name]) for student in cell["students"]]
    return sum(values) / len(values)


def page(numbers: Mapping[str, Any], workshop: Workshop) -> str:
    """The Markdown page."""
    success, paid, phases = [], [], []
    for cell in numbers["cells"]:
        arm = f"{cell['arm']} {ARMS[cell['arm']].words}"
        who = [arm, f"{100 * cell['budget']:g} %"]
        against = f"{cell['against']}: {difference(cell['paired'])}" if cell["paired"] is not None else ""
        success.append([*who, *success_cells(cell), against])
        times = [f"{mean(cell, name):.1f}" for name in ("p50_ms", "p99_ms")]
        flops = [f"{100 * mean(cell, 'share'):.1f} %", f"{mean(cell, 'layers'):.1f}"]
        taken = f"{mean(cell, 'routes'):.0f}, {100 * mean(cell, 'commonest_frames'):.0f} %"
        paid.append([*who, *flops, *times, taken])
        if cell["arm"] in (5, 6, 7, 10):
            by_phase = cell["students"][0]["by_phase"]
            phases.append(f"- {arm}, {who[1]}: " + ", ".join(f"{name} {of:.1f}" for name, of in by_phase.items()))
    text = f"""# Budgets

{numbers["suite"]}. {whole(workshop)} The teacher of these students is a `{workshop.budget.student}` that clones it.

Every arm starts from the same teacher and trains as long, on the same data, with the same settings. Success with 95 %
Wilson interval over the episodes of all seeds, students as deployed (docs/deploy.md). Paired: difference in success
"ever" to the arm named, on the same starts and at the same budget (arm 1: at full depth), exact McNemar p.

{markdown_table(["arm", "budget", "success ever", "after release", "paired with"], success)}

FLOPs and layers: of the whole network's, on the frames of the data. Milliseconds: of whole answers, one by one, on one
thread of the machine that ran this. Routes: how many different ones, and how many of the frames take the commonest.

{markdown_table(["arm", "budget", "FLOPs", "layers", "p50, ms", "p99, ms", "routes, commonest"], paid)}
"""
    if phases:
        text += "\nLayers by phase, of the first seed:\n\n" + "\n".join(phases) + "\n"
    if numbers["impossible"]:
        least = ", ".join(f"{100 * share:g} %" for share in numbers["impossible"])
        text += f"\nBudgets that no route of this network meets: {least}.\n"
    if numbers["not_in"]:
        arms = ", ".join(f"{arm} ({ARMS[arm].words})" for arm in numbers["not_in"])
        text += f"\nArms that this study was not asked for: {arms}.\n"
    return text


def plot(numbers: Mapping[str, Any]) -> Figure:
    """Success against FLOPs and against milliseconds, a line for each arm."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for panel, name, scale in ((left, "share", 100.0), (right, "p50_ms", 1.0)):
        for arm in dict.fromkeys(cell["arm"] for cell in numbers["cells"]):
            mine = [cell for cell in numbers["cells"] if cell["arm"] == arm]
            success, errors = success_points(mine)
            xs = [scale * mean(cell, name) for cell in mine]
            panel.errorbar(xs, success, yerr=errors, marker="o", capsize=2, label=f"{arm} {ARMS[arm].words}")
    left.set(xlabel="FLOPs, % of the whole network's", ylabel="success ever, %")
    right.set(xlabel="p50 of an answer, ms")
    if numbers["cells"]:
        left.legend(frameon=False, fontsize=6)
    return figure
