"""What the two stages of ActDistill say of their work. L: decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProbeSummary:
    """summary.json of `vlaad probe`."""

    teacher: str
    """What identifies the teacher's weights."""
    heads: str
    """Hash of the heads' weights."""
    kind: str
    """graph or mean."""
    layers: int
    probed: int
    """Episodes whose probes this run made."""
    skipped: int
    """Episodes that had them."""
    frames: int
    errors: tuple[float, ...]
    """[L] mean squared error of each layer's actions, on the episodes held out (on all, where there are none)."""
    gate_probe: tuple[float, ...]
    """[L] E|<dL/dh_l, h_l - h_(l-1)>| on the training episodes: how much the loss depends on a layer
    (GateProbe, arXiv 2606.27755)."""
    milliseconds: tuple[float, float]
    """Of one answer on one thread where the job ran first: what always runs, and a layer."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RoutesSummary:
    """routes.json of `vlaad distil`: what layers the student runs, on the frames of its data."""

    frames: int
    share: float
    """Mean share of the whole network's FLOPs."""
    layers: float
    """Mean number of layers."""
    by_layer: tuple[float, ...]
    """[L] share of the frames that run each layer."""
    by_phase: Mapping[str, float]
    """Mean number of layers in each phase."""
    routes: int
    """Distinct ones."""
    commonest: str
    """The route that most frames take, as 0-7,11."""
    commonest_frames: float
    """Share of the frames that take it."""
    commonest_share: float
    """Share of the FLOPs that it takes."""
