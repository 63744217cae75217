"""What formats and sources are, and what a source says of what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlaad_ray.summaries import ExportDatasetSummary, Replayed
from vlaad_ray.types import Embodiment


@dataclass(frozen=True)
class Format:
    config: type[Any]
    """Dataclass of the format's own flags, each with a default."""
    write: Callable[[Any, Any], ExportDatasetSummary]
    """Writes the dataset that an ExportDatasetConfig names, with the format's own settings. A second call completes
    what a first one left; readers take nothing for a dataset before it is whole."""


@dataclass(frozen=True)
class Item:
    """An episode of a source that is to become one of ours."""

    number: int
    """In its source, from 0."""
    task: int
    instruction: str
    fingerprint: str
    """Changes with its content."""
    where: Mapping[str, Any]
    """What the source needs to find it again."""
    footer: Mapping[str, Any] = field(default_factory=dict)
    """What our own export says of it, if that is what the source is: its footer when it was ours."""


@dataclass(frozen=True)
class Demonstration:
    """What an item holds. T steps; index t holds what was seen *before* action t."""

    proprio: np.ndarray
    """[T, P] float32."""
    actions: np.ndarray
    """[T, A] float32, as the source has them."""
    images: Mapping[str, Sequence[np.ndarray]]
    """Camera -> [T] of [H, W, 3] uint8, as the source has them."""
    executed: np.ndarray | None = None
    """[T, A], where that is something else than `actions`."""
    phases: tuple[str | None, ...] | None = None
    """[T], where the source tells them."""
    success: bool | None = None
    """Whether the goal was reached; None: the source does not say."""


@dataclass(frozen=True)
class Plan:
    """What a source holds, before any of it is read."""

    body: Embodiment
    """Cameras by the names that they are to have."""
    items: tuple[tuple[Item, ...], ...]
    """The episodes; those that lie in the same files together."""
    read: Callable[[Sequence[Item]], Iterator[Demonstration]]
    """The demonstrations of some items that lie together. Called in Ray's workers."""
    flip: str
    """As ImportDatasetConfig.flip, without auto."""
    gripper_means: str
    """As ImportDatasetConfig.gripper_means, without auto."""
    action_range: tuple[np.ndarray, np.ndarray] | None = None
    """([A], [A]) the least and the largest actions, where the source says them."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


def cannot_replay(config: Any, reading: Any, plan: Plan) -> Sequence[Replayed]:
    """Of a source without simulator states."""
    return ()


@dataclass(frozen=True)
class Source:
    config: type[Any]
    """Dataclass of the source's own flags, each with a default."""
    plan: Callable[[Any, Any], Plan]
    """Looks at what an ImportDatasetConfig names, with the source's own settings. Raises UserError for what is none."""
    replay: Callable[[Any, Any, Plan], Sequence[Replayed]] = cannot_replay
    """Acts some of it out in the simulator, if the settings say so."""
