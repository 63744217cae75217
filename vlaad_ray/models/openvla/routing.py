"""What makes an OpenVLA directory a routed one: routing.json, and router.safetensors unless the route is fixed.

routing.json    format, schema_version, threshold (a layer runs where the router's probability is above it), route (the
                layers that always run, as 0-7,31, and no router is asked; or null), router (SHA-256 of its weights)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlaad_ray.configs import UserError, read_record
from vlaad_ray.files import read_json, sha256
from vlaad_ray.models.student.checkpoint import load_tensors
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.router import Router

ROUTING, ROUTER = "routing.json", "router.safetensors"
FORMAT, SCHEMA_VERSION = "vlaad_ray routing", 1
AGAIN = "copy the checkpoint again"


@dataclass(frozen=True)
class Routing:
    """Which decoder layers run: always the same, or what a router says of an observation."""

    threshold: float = 0.5
    route: routes.Route | None = None
    weights: Path | None = None
    """The router's file; None: the route is fixed."""
    digest: str | None = None
    """The file's SHA-256."""

    def load(self, width: int, depth: int, device: torch.device) -> Router | None:
        """The router, in fp32. Raises UserError for weights that don't fit."""
        if self.weights is None:
            return None
        router, tensors = Router(width, depth), load_tensors(self.weights)
        if sha256(self.weights) != self.digest:
            raise UserError(f"{self.weights} is not the file that {ROUTING} was written with; copy both again")
        expected = {name: tensor.shape for name, tensor in router.state_dict().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise UserError(f"{self.weights}: not a router of a decoder of {depth} layers and width {width}; {AGAIN}")
        router.load_state_dict(tensors)
        return router.to(device).eval().requires_grad_(False)


@dataclass(frozen=True)
class _Written:
    """What routing.json holds beside format and schema_version."""

    threshold: float = 0.5
    route: str | None = None
    router: str | None = None


def read_routing(directory: Path, depth: int) -> Routing | None:
    """None for a directory without routing.json. Raises UserError naming the file at fault."""
    path = directory / ROUTING
    if not path.is_file():
        return None
    content = read_json(path, broken=AGAIN)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a {FORMAT}; {AGAIN}")
    if (version := content.pop("schema_version", None)) != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}, this vlaad_ray reads {SCHEMA_VERSION}")
    written = read_record(_Written, content, str(path), AGAIN)
    if not 0 < written.threshold < 1:
        raise UserError(f"{path}: threshold {written.threshold} is not between 0 and 1")
    if written.route is not None:
        return Routing(written.threshold, routes.parse(written.route, depth, f"{path}: route"))
    return Routing(written.threshold, weights=directory / ROUTER, digest=written.router)


def write_routing(
    directory: Path, router: Router | None, threshold: float = 0.5, route: routes.Route | None = None
) -> None:
    """Make the OpenVLA checkpoint in `directory` a routed one: by a fixed `route`, or else by a router."""
    assert (router is None) != (route is None)
    digest = None
    if router is not None:
        save_file({name: tensor.contiguous().cpu() for name, tensor in router.state_dict().items()}, directory / ROUTER)
        digest = sha256(directory / ROUTER)
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "threshold": threshold,
        "route": None if route is None else routes.written(route),
        "router": digest,
    }
    (directory / ROUTING).write_text(json.dumps(content, indent=2) + "\n")
