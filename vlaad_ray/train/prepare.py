"""From a training config to what is trained, and the entries of the doors that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from vlaad_ray import plugins
from vlaad_ray.configs import Location, TrainConfig, UserError, places_of, settings_of
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Columns, Learner, Method
from vlaad_ray.models.student import STUDENTS, checkpoint, presets
from vlaad_ray.models.student.model import StudentConfig
from vlaad_ray.models.student.presets import Preset, Wish
from vlaad_ray.models.student.text import TextTokenizer
from vlaad_ray.train.data import ColumnsOf
from vlaad_ray.train.survey import Survey
from vlaad_ray.types import Annotation, Episode


def find_preset(student: str) -> Preset:
    return plugins.lookup("student", STUDENTS, student)


def find_method(objective: str) -> Method:
    return plugins.lookup("objective", METHODS, objective)


def complete(config: TrainConfig) -> TrainConfig:
    """With the settings of its student and its objective, and whole paths: workers run in other directories."""
    preset, method = find_preset(config.student), find_method(config.objective)
    network = settings_of(f"student {config.student}", preset.config, config.network)
    settings = settings_of(f"objective {config.objective}", method.config, config.method)
    labelled = method.annotated or method.phases
    return replace(
        config,
        data=config.data.resolve(),
        out=config.out.resolve(),
        annotations=config.annotations.resolve() if config.annotations and labelled else None,
        more_data=tuple(place.resolve() for place in config.more_data),
        more_annotations=tuple(place.resolve() for place in config.more_annotations if labelled),
        start_from=config.start_from.resolve() if config.start_from else None,
        frame_cache=config.frame_cache.resolve() if config.frame_cache else None,
        network=preset.absolute(network),
        method=replace(settings, **{name: place.resolve() for name, place in places_of(settings)}),
    )


def reads(config: TrainConfig) -> dict[str, Location | None]:
    """Flag -> the directory that training reads there. `config` is complete."""
    network = find_preset(config.student).reads(config.network)
    method = find_method(config.objective).reads(config.method)
    more = {f"--more-data {number}": place for number, place in enumerate(config.more_data, start=1)}
    notes = {f"--more-annotations {number}": place for number, place in enumerate(config.more_annotations, start=1)}
    own = {"--data": config.data, "--annotations": config.annotations, "--start-from": config.start_from}
    return {**own, **more, **notes, **network, **method}


def columns_of(method: Method, settings: Any) -> ColumnsOf:
    """All columns of an episode that a method needs, its own directory's among them."""
    return partial(_columns, method, settings)


def _columns(method: Method, settings: Any, episode: Episode, annotation: Annotation | None) -> Columns:
    return {**method.columns(episode, annotation), **method.stored(settings, episode)}


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Other values of settings, be they the training's own, its method's or its network's. Raises UserError."""
    config = complete(config)
    places = {"": config, "method": config.method, "network": config.network}
    changed: dict[str, dict[str, Any]] = {place: {} for place in places}
    for name, value in values.items():
        having = [place for place, holder in places.items() if name in {field.name for field in fields(holder)}]
        if not having:
            raise UserError(
                f"--{name.replace('_', '-')}: neither --objective {config.objective} nor --student {config.student} "
                "has such a setting"
            )
        changed[having[0]][name] = value
    nested = {place: replace(places[place], **changed[place]) for place in ("method", "network")}
    return replace(config, **changed[""], **nested)


def design(config: TrainConfig, facts: Survey, folder: Location) -> tuple[TrainConfig, StudentConfig, TextTokenizer]:
    """The student's config and tokenizer, and the training config, its network's settings settled.

    `folder`: the run's. Raises UserError where the settings, the data and pretrained weights disagree.
    """
    preset, robot = find_preset(config.student), facts.embodiment
    if config.start_from is not None:
        return config, *_design_of(config, config.start_from, preset, facts)
    wish = Wish(facts.texts, config.image_size, config.seed, folder)
    settings, student, tokenizer = presets.design(preset, config.network, wish)
    if unknown := set(config.cameras) - set(robot.cameras):
        raise UserError(f"--cameras {min(unknown)}: {config.data} has {' and '.join(robot.cameras)}; choose of these")
    student = replace(
        student,
        cameras=config.cameras or preset.cameras(robot.cameras),
        proprio=config.proprio and robot.proprio_dim > 0,
        chunk=config.chunk,
        action_dim=robot.action_dim,
        proprio_dim=robot.proprio_dim,
        gripper=robot.gripper,
    )
    return replace(config, network=settings), student, tokenizer


def _design_of(
    config: TrainConfig, start: Location, preset: Preset, facts: Survey
) -> tuple[StudentConfig, TextTokenizer]:
    """Those of the checkpoint to start from. Raises UserError where it is another kind of student."""
    before = checkpoint.from_pretrained(start)
    mine, robot = before.student.config, facts.embodiment
    wanted = {
        "architecture": (mine.architecture, preset.architecture),
        "chunk": (mine.chunk, config.chunk),
        "image_size": (mine.image_size, config.image_size or mine.image_size),
        "cameras": (mine.cameras, config.cameras or mine.cameras),
        "robot": (
            (mine.action_dim, mine.proprio_dim, mine.gripper),
            (robot.action_dim, robot.proprio_dim, robot.gripper),
        ),
    }
    for name, (has, asked) in wanted.items():
        if has != asked:
            raise UserError(f"--start-from {start}: its {name} is {has}, not {asked}; start from another, or from none")
    return mine, before.tokenizer


def make_learner(
    config: TrainConfig, facts: Survey, student_config: StudentConfig, preset: Preset, method: Method
) -> Learner:
    """What is trained, as it is before the first step: the same wherever it is made."""
    if config.start_from is not None:
        torch.manual_seed(config.seed)  # for adapters, and what a method draws beside the student
        before = checkpoint.from_pretrained(config.start_from).student
        preset.adapt(before, config.network)
        return method.learner(config.method, before, facts.phases)
    student = presets.make(preset, config.network, student_config, config.seed)
    student.proprio_mean.copy_(torch.tensor(facts.proprio_mean))
    student.proprio_std.copy_(torch.tensor(facts.proprio_std))
    return method.learner(config.method, student, facts.phases)
