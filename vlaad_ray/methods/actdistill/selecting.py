"""Which layers run: what a budget allows, and static choices beside the router."""

from __future__ import annotations

from collections.abc import Sequence

from vlaad_ray import store
from vlaad_ray.configs import UserError
from vlaad_ray.configs.distil import ActDistillConfig
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.mini import MiniVlaConfig, cost
from vlaad_ray.models.vla.routes import Cost, Route
from vlaad_ray.summaries import ProbeSummary

ROUNDING = 1e-9


def budgets(
    settings: ActDistillConfig, whole: Cost, phases: Sequence[str]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Budgets of groups of frames, the first that of all phases without one of their own; and each phase's group.

    Raises UserError for a budget that no route meets, and for a phase that the data does not have.
    """
    own: dict[str, float] = {}
    for piece in filter(None, settings.phase_budgets.replace(" ", "").split(",")):
        phase, _, number = piece.partition("=")
        if not number.replace(".", "", 1).isdigit() or not 0 < float(number) <= 1:
            raise UserError(f"--phase-budgets: {piece!r} is none; write them as transporting=0.3,grasping=0.8")
        if phase not in phases:
            raise UserError(f"--phase-budgets: the data has no phase {phase!r}; it has {', '.join(phases)}")
        own[phase] = float(number)
    within(whole, settings.budget, "--budget")
    for phase, budget in own.items():
        within(whole, budget, f"--phase-budgets {phase}")
    groups = {phase: group for group, phase in enumerate(own, start=1)}
    return (settings.budget, *own.values()), tuple(groups.get(phase, 0) for phase in phases)


def within(whole: Cost, budget: float, flag: str) -> int:
    """The most layers that a budget allows. Raises UserError, naming the nearest, where it does not allow two."""

    def share(layers: int) -> float:
        return (whole.fixed + layers * whole.layer) / (whole.fixed + whole.depth * whole.layer)

    fitting = [layers for layers in range(2, whole.depth + 1) if share(layers) <= budget + ROUNDING]
    if not fitting:
        raise UserError(
            f"{flag} {budget:g} cannot be met: vision, readout, the first and the last layer take {share(2):.3f}; give "
            "that or more"
        )
    return fitting[-1]


def route_of(settings: ActDistillConfig, whole: Cost) -> Route | None:
    """The static choice; None: a router's. Raises UserError for one that the budget does not allow."""
    depth = whole.depth
    if settings.select == "router":
        return None
    count = within(whole, settings.budget, "--budget")
    if settings.select == "first":
        return routes.of_layers([*range(count - 1), depth - 1], depth, "--select first")
    if settings.select == "gateprobe":
        return most_needed(measured(settings, "--select gateprobe").gate_probe, count)
    route = routes.parse(settings.select, depth, "--select")
    if sum(route) > count:
        raise UserError(
            f"--select {settings.select} takes {whole.share(route):.3f} of the whole; --budget {settings.budget:g} "
            f"allows {count} layers, choose so many or raise it"
        )
    return route


def cost_of(settings: ActDistillConfig, network: MiniVlaConfig) -> Cost:
    """What the network's parts take, as --count has it."""
    if settings.count == "flops":
        return cost(network)
    fixed, layer = measured(settings, "--count milliseconds").milliseconds
    return Cost(fixed, layer, network.depth)


def measured(settings: ActDistillConfig, flag: str) -> ProbeSummary:
    """What stage 1 measured. Raises UserError, naming the `flag` that goes by it, where it has not come to its end."""
    if settings.probes is None:
        raise UserError(f"{flag} goes by what jobs/probe.py measured: name its directory with --probes")
    summary = store.read_summary(settings.probes, ProbeSummary)
    if summary is None:
        raise UserError(f"--probes {settings.probes} is not complete; run jobs/probe.py there again")
    return summary


def most_needed(scores: Sequence[float], count: int) -> Route:
    """The `count` layers of the highest scores, the first and the last among them whatever theirs are."""
    last = len(scores) - 1
    inner = sorted(range(1, last), key=lambda layer: -scores[layer])[: count - 2]
    return routes.of_layers([0, *inner, last], last + 1, "--select gateprobe")
