"""Stage 2: a student that is its teacher with gates, beside the frozen teacher and the frozen heads.

Gates are on the residual, h <- h + g_l (F_l(h) - h), 0 or 1 forward and a sigmoid's gradient backward: what is trained
is what runs. The heads stay as they are, so that the semantics can only be met by the backbone. Every layer of a routed
student runs in training, on every worker: a gate needs the gradient of what it skips.

Notation as in models.vla.heads; G groups of frames with a budget each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlaad_ray.configs import UserError
from vlaad_ray.configs.distil import ActDistillConfig
from vlaad_ray.methods.actdistill import kept, losses, selecting
from vlaad_ray.methods.actdistill.teacher import teacher_config
from vlaad_ray.methods.method import Batch, Learner, Material, Parts, action_loss
from vlaad_ray.models.student.model import Student
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.heads import Heads, Known
from vlaad_ray.models.vla.layered import Inputs
from vlaad_ray.models.vla.mini import MiniVla, on_route, with_router
from vlaad_ray.models.vla.router import hard_gates, with_ends
from vlaad_ray.models.vla.routes import Cost, Route


class Distilled(NamedTuple):
    """What the loss is computed from; None where nothing asks for it."""

    image: Tensor
    """The student's output [B, K, A, N]."""
    known: Known | None
    """What the heads say of the student's layers."""
    taught: Tensor | None
    """The teacher's output."""
    share: Tensor | None
    """[B] of what the whole network takes, with the gradient of the gates."""
    ran: Tensor
    """[B] the same of the layers that really ran."""


class Distiller(Learner):
    """Student, frozen teacher and heads, and the multipliers of the budgets, which resuming needs, too."""

    student: MiniVla
    multiplier: Tensor
    budget: Tensor
    group_of_phase: Tensor
    layer_weights: Tensor

    def __init__(
        self,
        settings: ActDistillConfig,
        teacher: MiniVla,
        route: Route | None,
        heads: Heads | None,
        budgets: Sequence[float] = (1.0,),
        group_of_phase: Sequence[int] = (0,),
    ) -> None:
        """`route`: static; None: a router's. `heads`: None where only the task counts. `budgets` [G]."""
        layers = tuple(index for index, runs in enumerate(route or ()) if runs)
        super().__init__(with_router(teacher) if route is None else on_route(teacher, layers))
        self.cost: Cost = selecting.cost_of(settings, teacher.config)
        self.route, self.authors = route, settings.gating == "authors"
        self.heads = heads.requires_grad_(False) if heads else None
        self.teacher = copy.deepcopy(teacher).requires_grad_(False) if heads and settings.kappa else None
        self.register_buffer("multiplier", torch.full((len(budgets),), losses.LEAST_MULTIPLIER))
        self.register_buffer("budget", torch.tensor(budgets), persistent=False)
        self.register_buffer("group_of_phase", torch.tensor(group_of_phase), persistent=False)
        self.register_buffer("layer_weights", losses.layer_weights(teacher.depth, settings.gamma), persistent=False)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images: Tensor, proprio: Tensor, instruction: Tensor) -> Distilled:  # type: ignore[override]
        inputs = self.student.embed(images, proprio, instruction)
        share = None
        if self.route is None:
            gates, probability = self.gates(inputs)
            states = scaled(self.student, inputs, gates) if self.authors and self.training else None
            states = states or gated(self.student, inputs, gates)
            share, ran = (self.share_of(layers.float().sum(1)) for layers in (probability, gates.detach() > 0.5))
        else:
            states = along_route(self.student, inputs, self.route)
            ran = torch.full((len(images),), self.cost.share(self.route), device=images.device)
        image = self.student.readout(states[-1], inputs)
        known = self.heads(states, inputs.present) if self.heads is not None else None
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                whole = self.teacher.embed(images, proprio, instruction)
                taught = self.teacher.readout(gated(self.teacher, whole)[-1], whole)
        return Distilled(image, known, taught, share, ran)

    def gates(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Gates [B, L], and the probability that a layer runs [B, L]: under noise sigmoid(z), without it the gate."""
        assert self.student.router is not None
        logits = self.student.router(inputs)
        if self.authors and self.training:
            soft = with_ends(logits.sigmoid())
            return soft, soft
        noise = losses.noise_scale(self.done) if self.training else 0.0
        gates = hard_gates(logits, noise)
        return gates, with_ends(logits.sigmoid()) if noise else gates

    def share_of(self, layers: Tensor) -> Tensor:
        """How many layers run [B] -> share of what the whole network takes [B]."""
        whole = self.cost.fixed + self.cost.depth * self.cost.layer
        return (self.cost.fixed + self.cost.layer * layers) / whole


def along_route(network: MiniVla, inputs: Inputs, route: Route) -> list[Tensor]:
    """L hidden states, that of a layer that is skipped being the one before."""
    states, hidden = [], inputs.hidden
    for index, runs in enumerate(route):
        states.append(hidden := network.layer(index, hidden, inputs) if runs else hidden)
    return states


def scaled(network: MiniVla, inputs: Inputs, gates: Tensor) -> list[Tensor]:
    """As the authors' code trains: h <- g_l F_l(h), the whole hidden state scaled."""
    states, hidden = [], inputs.hidden
    for index in range(network.depth):
        states.append(hidden := gates[:, index, None, None].to(hidden.dtype) * network.layer(index, hidden, inputs))
    return states


def loss(
    settings: ActDistillConfig, learner: Distiller, answers: Distilled, batch: Batch, smoothing: float
) -> tuple[Tensor, Parts]:
    """The formula of losses.py. In training it also moves the multipliers on.

    Parts beside the loss's own: `share` of what the whole network takes that ran, and `multiplier`, the mean of them.
    """
    parts: Parts = {"image": action_loss(learner.student, answers.image, batch, smoothing)}
    total = parts["image"]
    if answers.taught is not None:
        parts["kl"] = losses.divergence(answers.taught, answers.image)
        total = total + settings.kappa * parts["kl"]
    if answers.known is not None:
        layers = answers.known.actions.shape[1]
        teacher = Known(
            batch.columns[kept.SEMANTICS].unflatten(1, (layers, -1)),
            batch.columns[kept.ACTIONS].unflatten(1, answers.known.actions.shape[1:]),
        )
        found = losses.layer_losses(answers.known, teacher, batch.actions)
        weighed = {name: (learner.layer_weights * each).sum() for name, each in found._asdict().items()}
        total = total + settings.align * (weighed["align"] + settings.eta * weighed["struct"])
        total = total + settings.act * weighed["act"]
        parts |= weighed
    parts["share"] = answers.ran.mean()
    if answers.share is not None:
        group = learner.group_of_phase[batch.phase]
        allowed = losses.scheduled_budget(learner.budget, learner.done if learner.training else 1.0)
        multiplier = learner.multiplier.clone()  # backward needs it as it is now
        parts["budget"] = losses.budget_loss(answers.share, allowed, multiplier, group)
        total = total + parts["budget"]
        parts["multiplier"] = multiplier.mean()
        if learner.training:
            learner.multiplier.copy_(losses.ascend(multiplier, answers.ran, allowed, group))
    return total, {name: part.detach() for name, part in parts.items()}


def learner(settings: ActDistillConfig, student: Student, phases: Sequence[str]) -> Distiller:
    assert isinstance(student, MiniVla)
    whole = selecting.cost_of(settings, student.config)
    budgets, groups = selecting.budgets(settings, whole, phases)
    heads = None
    if settings.losses == "all":
        assert settings.probes is not None
        heads = kept.load_heads(settings.probes)
    return Distiller(settings, student, selecting.route_of(settings, whole), heads, budgets, groups)


def check(settings: ActDistillConfig, material: Material) -> Mapping[str, str]:
    """Raises UserError for a budget that can't be met, and for probes of another teacher or other data."""
    if material.start_from is None:
        raise UserError("--objective actdistill makes a student of a teacher: name its checkpoint with --start-from")
    whole = selecting.cost_of(settings, teacher_config(material.start_from, "--start-from"))
    selecting.budgets(settings, whole, material.phases)
    if settings.phase_budgets and settings.select != "router":
        raise UserError("--phase-budgets: only a router runs other layers in other phases; leave --select as it is")
    identity = {}
    if settings.probes is not None:
        record = kept.check(settings.probes, material.start_from, material.episodes)
        identity = {"probes": record.weights}
    elif settings.losses == "all":
        raise UserError("--losses all needs --probes DIR, what jobs/probe.py left of this teacher (or --losses task)")
    selecting.route_of(settings, whole)
    return identity
