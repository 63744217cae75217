"""Which layers a routed student runs, frame by frame, on the episodes of a dataset."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vlaad_ray import files, store
from vlaad_ray.configs import Location, UserError
from vlaad_ray.distil.training import frames_of, loaded
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.drawn import with_drawn_routes
from vlaad_ray.models.vla.mini import MiniVla, cost
from vlaad_ray.models.vla.router import routes_of
from vlaad_ray.models.vla.routes import Route
from vlaad_ray.runtime.over_episodes import over_episodes
from vlaad_ray.summaries import RoutesSummary
from vlaad_ray.train.survey import EpisodeSource, phases_of
from vlaad_ray.types import Episode

DRAWN_ROUTES = 256
"""Of a student whose gates are those of other frames: enough that each route has its share."""
Counted = Counter[tuple[str, str]]
"""(route as it is written, phase) -> frames."""


@dataclass(frozen=True)
class Looking:
    """What a task needs that counts an episode's routes."""

    student: Location
    name: str
    annotations: Mapping[str, Location | None]
    device: str


def count_routes(student: Location, sources: Sequence[EpisodeSource], gpus: float = 0.0) -> Counted:
    """Of all pictured frames, over Ray."""
    notes = {source.path.stem: source.annotation for source in sources}
    looking = Looking(student, checkpoint.checkpoint_name(student), notes, "cuda" if gpus else "cpu")
    records = over_episodes(
        [source.path for source in sources], functools.partial(count_episode, looking=looking), "counting routes", gpus
    )
    if errors := [each["error"] for each in records if "error" in each]:
        raise UserError(f"{len(errors)} of {len(sources)} episodes could not be read; the first: {errors[0]}")
    counted: Counted = Counter()
    for each in records:
        counted.update({(route, phase): frames for route, phase, frames in each["routes"]})
    return counted


def count_episode(path: Location, episode: Episode, _: Mapping[str, Any], looking: Looking) -> dict[str, Any]:
    place = looking.annotations[path.stem]
    phases = phases_of(episode, store.read_annotation(place) if place else None)
    network, tokenizer = loaded(looking.student, looking.name, looking.device)
    counted: Counted = Counter()
    for frames in frames_of(path, network, tokenizer, looking.device):
        with torch.no_grad():
            taken = routes_taken(network, frames.images, frames.proprio, frames.instruction)
        counted.update((routes.written(route), phases[step]) for route, step in zip(taken, frames.steps, strict=True))
    return {"routes": [(route, phase, frames) for (route, phase), frames in counted.items()]}


def routes_taken(
    network: MiniVla, images: torch.Tensor, proprio: torch.Tensor, instruction: torch.Tensor
) -> list[Route]:
    """The route of each observation, as at run time."""
    if network.route is not None or network.router is None:
        return [network.route or routes.full(network.depth)] * len(images)
    logits = network.router(network.embed(images, proprio, instruction))
    return [tuple(map(bool, row)) for row in routes_of(logits, network.config.threshold).tolist()]


def summarise(counted: Mapping[tuple[str, str], int], whole: routes.Cost) -> RoutesSummary:
    """Shares and means over all frames; `whole`: what the network's layers cost."""
    frames = sum(counted.values())
    of_route: Counter[str] = Counter()
    for (written, _), count in counted.items():
        of_route[written] += count
    read = {written: routes.parse(written, whole.depth, "a route") for written in of_route}
    phases = sorted({phase for _, phase in counted})
    # The smaller name wins a tie, so that it does not matter in what order episodes were read.
    commonest = min(of_route, key=lambda written: (-of_route[written], written))
    return RoutesSummary(
        frames=frames,
        share=sum(whole.share(read[written]) * count for written, count in of_route.items()) / frames,
        layers=sum(sum(read[written]) * count for written, count in of_route.items()) / frames,
        by_layer=tuple(
            sum(count for written, count in of_route.items() if read[written][layer]) / frames
            for layer in range(whole.depth)
        ),
        by_phase={phase: mean_layers(counted, read, phase) for phase in phases},
        routes=len(of_route),
        commonest=commonest,
        commonest_frames=of_route[commonest] / frames,
        commonest_share=whole.share(read[commonest]),
    )


def mean_layers(counted: Mapping[tuple[str, str], int], read: Mapping[str, Route], phase: str) -> float:
    own = {written: count for (written, of), count in counted.items() if of == phase}
    return sum(sum(read[written]) * count for written, count in own.items()) / sum(own.values())


def write_on_route(student: Location, route: str, out: Location) -> None:
    """The student that always takes `route`, without its router, as a checkpoint of its own at `out`."""
    found = checkpoint.from_pretrained(student)
    assert isinstance(found.student, MiniVla)
    runs = routes.parse(route, found.student.depth, "the commonest route")
    layers = tuple(index for index, each in enumerate(runs) if each)
    fixed = MiniVla(replace(found.student.config, routed=False, route=layers))
    kept = fixed.state_dict().keys()
    fixed.load_state_dict({name: tensor for name, tensor in found.student.state_dict().items() if name in kept})
    write_variant(student, fixed, found, {"route": route}, out)


def write_drawn(student: Location, counted: Counted, out: Location) -> None:
    """The student whose gates are those of some other frame, as a checkpoint of its own at `out`."""
    found = checkpoint.from_pretrained(student)
    assert isinstance(found.student, MiniVla)
    of_route: Counter[str] = Counter()
    for (written, _), frames in counted.items():
        of_route[written] += frames
    names = sorted(of_route)
    shares = np.array([of_route[name] for name in names], np.float64)
    picked = np.random.default_rng(0).choice(len(names), DRAWN_ROUTES, p=shares / shares.sum())
    layers = {
        name: tuple(index for index, runs in enumerate(routes.parse(name, found.student.depth, "a route")) if runs)
        for name in names
    }
    drawn = with_drawn_routes(found.student, tuple(layers[names[index]] for index in picked))
    write_variant(student, drawn, found, {"drawn_of": len(names)}, out)


def write_variant(
    student: Location, network: MiniVla, found: checkpoint.Pretrained, facts: Mapping[str, Any], out: Location
) -> None:
    record = {**found.training, **facts, "made_of": checkpoint.checkpoint_name(student)}
    with files.replacing_directory(out, checkpoint.CONFIG) as folder:
        checkpoint.save_pretrained(folder, network, found.tokenizer, record)


def cost_of(student: Location) -> routes.Cost:
    """Of the student's network, whatever it skips."""
    return cost(loaded(student, checkpoint.checkpoint_name(student), "cpu")[0].config)
