"""The door for students: what training has to know of an architecture, and nothing it must ask by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlaad_ray.configs import Location, NoSettings
from vlaad_ray.models.student.model import Student, StudentConfig
from vlaad_ray.models.student.text import TextTokenizer, train_tokenizer


@dataclass(frozen=True)
class Wish:
    """What a training asks of a network, whatever its architecture."""

    texts: Sequence[str]
    """All that will be said to it."""
    image_size: int = 0
    """Pixels; 0: the preset's own."""
    seed: int = 0
    folder: Location = Path()
    """The run's directory, for what a continued run needs again."""


class Design(NamedTuple):
    """A network that is about to be made."""

    settings: Any
    """As they were given, whatever was left open settled."""
    config: StudentConfig
    tokenizer: TextTokenizer


def all_cameras(cameras: Sequence[str]) -> tuple[str, ...]:
    return tuple(cameras)


def first_camera(cameras: Sequence[str]) -> tuple[str, ...]:
    return tuple(cameras[:1])


def _nothing(*_: Any) -> None:
    """There is nothing to do."""


def _as_they_are(settings: Any) -> Any:
    return settings


def _reads_nothing(settings: Any) -> dict[str, Location]:
    return {}


def _no_identity(settings: Any) -> dict[str, str]:
    return {}


def _no_activations(config: StudentConfig) -> int:
    return 0


@dataclass(frozen=True)
class Preset:
    """An architecture at a size that goes by a name, and how its students come about.

    Functions get the preset's own settings, a value of `config`; those with a default are for pretrained weights.
    """

    architecture: str
    """As its checkpoints name it, and `StudentConfig.architecture` of its config."""
    network: Callable[[], tuple[type[StudentConfig], type[Student]]]
    """Imports its module: users of one architecture need not have the packages of another."""
    config: type[Any] = NoSettings
    """Settings (flags) of its own, with their bounds (configs.bounds)."""
    cameras: Callable[[Sequence[str]], tuple[str, ...]] = all_cameras
    """Which of the data's cameras it looks through, unless told."""
    check: Callable[[Any, int], None] = _nothing
    """(settings, image_size): raises UserError for what it cannot do, before any work."""
    reads: Callable[[Any], Mapping[str, Location]] = _reads_nothing
    """Flag -> the directory that a training reads there."""
    absolute: Callable[[Any], Any] = _as_they_are
    """Settings with whole paths, as workers run in other directories."""
    drawn: Callable[[Any], Any] = _as_they_are
    """Settings by which nothing pretrained is needed, for measuring how fast it is."""
    design: Callable[[Any, Wish], Design] | None = None
    """None: its config's own shape, and a tokenizer trained on the texts."""
    weights: Callable[[Student, Any], None] = _nothing
    """(student, settings): put pretrained weights into a network that was drawn at random."""
    adapt: Callable[[Student, Any], None] = _nothing
    """(student, settings): leave trainable what is trained."""
    finish: Callable[[Student], None] = _nothing
    """Make of a trained student the one that is deployed: without adapters."""
    identity: Callable[[Any], Mapping[str, str]] = _no_identity
    """What else must not change under a run: a hash of pretrained weights, say."""
    activation_bytes: Callable[[StudentConfig], int] = _no_activations
    """Memory that each frame of a batch takes during a step, roughly; 0: nothing beside its data."""


def design(preset: Preset, settings: Any, wish: Wish) -> Design:
    """Raises UserError where settings, wish and pretrained weights disagree."""
    if preset.design is not None:
        return preset.design(settings, wish)
    config_type, _ = preset.network()
    tokenizer = train_tokenizer(wish.texts, config_type.text_length)
    size = wish.image_size or config_type.image_size
    return Design(settings, config_type(vocabulary=tokenizer.vocabulary, image_size=size), tokenizer)


def make(preset: Preset, settings: Any, config: StudentConfig, seed: int) -> Student:
    """A student to train: drawn from the seed, with pretrained weights and adapters if it has them."""
    torch.manual_seed(seed)
    _, network = preset.network()
    student = network(config)
    preset.weights(student, settings)
    preset.adapt(student, settings)
    return student
