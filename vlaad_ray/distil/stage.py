"""Stage 2 of ActDistill: a training like any other (vlaad_ray.train), then a look at the layers that the student runs.

OUT/…                what a training leaves
OUT/routes.json      layers and FLOPs on the frames of the data, by phase; the commonest route
OUT/commonest/       with --commonest: the student that always takes it
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import ray.data
from rich.table import Table

from vlaad_ray import store, train
from vlaad_ray.configs import DistilConfig, TrainConfig, read_record
from vlaad_ray.distil.routes import Counted, cost_of, count_routes, summarise, write_on_route
from vlaad_ray.distil.training import from_teacher
from vlaad_ray.models.student import checkpoint
from vlaad_ray.runtime import cluster
from vlaad_ray.summaries import RoutesSummary, TrainSummary
from vlaad_ray.train import prepare
from vlaad_ray.train.survey import survey

ROUTES = "routes.json"


class Distilled(NamedTuple):
    training: TrainSummary
    routes: RoutesSummary


def distil(config: DistilConfig) -> Distilled:
    """Train, or continue, or show what is finished."""
    training = training_of(config)
    trained = train.train(training)
    student = training.out / "checkpoint"
    taken = read_routes(training)
    if taken is None:
        taken = look_at_routes(training)
    place = training.out / "commonest"
    if config.commonest and not (place / checkpoint.CONFIG).exists():
        write_on_route(student, taken.commonest, place)
    return Distilled(trained, taken)


def training_of(config: DistilConfig) -> TrainConfig:
    """The training that the command runs."""
    return from_teacher(config.train, config.checkpoint, "actdistill", config.distillation)


def look_at_routes(training: TrainConfig) -> RoutesSummary:
    """Write and return OUT/routes.json."""
    taken = summarise(counted_routes(training), cost_of(training.out / "checkpoint"))
    store.write_json(training.out / ROUTES, taken)
    return taken


def counted_routes(training: TrainConfig) -> Counted:
    """Of the trained student, on all pictured frames that it was trained on or that were held out."""
    config = prepare.complete(training)
    more = zip(config.more_data, config.more_annotations or (None,) * len(config.more_data), strict=True)
    method = prepare.find_method(config.objective)
    facts = survey(config.data, config.annotations, config.validation_fraction, method, list(more))
    cluster.connect(ray_data=True)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours instead of one an operator
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # warns of its progress bars being off
    return count_routes(config.out / "checkpoint", facts.sources, config.gpus_per_worker)


def read_routes(training: TrainConfig) -> RoutesSummary | None:
    path = training.out / ROUTES
    if not path.exists():
        return None
    return read_record(RoutesSummary, store.read_json(path), str(path), "delete it and run jobs/distil.py again")


def show(found: Distilled) -> Table:
    """What jobs/distil.py prints at the end."""
    taken = found.routes
    table = train.table(found.training)
    layers = f"{taken.layers:.1f} of {len(taken.by_layer)} layers"
    table.add_row("FLOPs", f"{taken.share:.1%} of the whole network's, {layers}")
    table.add_row("frames that run a layer", " ".join(f"{share:.0%}" for share in taken.by_layer))
    table.add_row("layers by phase", ", ".join(f"{phase} {mean:.1f}" for phase, mean in taken.by_phase.items()))
    how_often = f"{taken.commonest_frames:.0%} of the frames, {taken.commonest_share:.1%} of the FLOPs"
    table.add_row("commonest route", f"{taken.commonest} ({how_often}); {taken.routes} routes in all")
    return table
