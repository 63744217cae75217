"""Parts of ActDistill's loss (arXiv 2511.18082), and the multiplier that holds a budget.

    L = L_task + kappa KL(teacher || student) + sum_l w_l [alpha (L_align + eta L_struct) + beta L_act]
        + lambda max(0, C_student / C - b)^2

Notation as in models.vla.heads; N bins of a number of an action, G groups of frames with a budget each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vlaad_ray.models.vla.heads import Known

OPEN_UNTIL = 0.4
"""Share of the training over which the budget falls from the whole network to its target."""
NOISY_UNTIL = 2 / 3
"""Share of the training in which gates are noisy; after it training is what is deployed."""
LEAST_MULTIPLIER, GREATEST_MULTIPLIER = 1.0, 1e4
"""It starts at the least."""
ASCENT = 1.0
"""How fast the multiplier's logarithm follows what the budget is missed by, a step."""


class LayerLosses(NamedTuple):
    """Each [L]."""

    align: Tensor
    struct: Tensor
    act: Tensor


def layer_weights(layers: int, gamma: float) -> Tensor:
    """w_l [L], proportional to (l / (L - 1)) ** gamma, of mean 1: the first layer, which always runs, has none."""
    weights = (torch.arange(layers, dtype=torch.float32) / max(1, layers - 1)) ** gamma
    weights[0] = 0.0
    return weights / weights.mean()


def layer_losses(student: Known, teacher: Known, actions: Tensor) -> LayerLosses:
    """How far the student's layers are from the teacher's; actions [B, K, A]: what was to be done.

    align: 1 - cosine of the semantics. struct: squared error of the batch's cosine matrices. act: squared errors to the
    actions, to the teacher's and to the student's own of the layer before, which is no target of its own gradient.
    """
    own = functional.normalize(student.semantics.float(), dim=-1)
    other = functional.normalize(teacher.semantics.float(), dim=-1)
    said, taught = student.actions.float(), teacher.actions.float()
    before = torch.cat([said[:, :1], said[:, :-1]], 1).detach()
    act = sum((said - target).square() for target in (actions[:, None], taught, before))
    assert isinstance(act, Tensor)
    return LayerLosses(
        align=1 - (own * other).sum(-1).mean(0),
        struct=(cosines(own) - cosines(other)).square().mean((1, 2)),
        act=act.mean((0, 2, 3)),
    )


def cosines(normalised: Tensor) -> Tensor:
    """[B, L, S] of length 1 -> [L, B, B]: of each frame of the batch with each."""
    by_layer = normalised.transpose(0, 1)
    return by_layer @ by_layer.transpose(1, 2)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits [B, K, A, N] -> scalar, in nats a number of an action."""
    taught = teacher.float().log_softmax(-1)
    return (taught.exp() * (taught - student.float().log_softmax(-1))).sum(-1).mean()


def scheduled_budget(budget: Tensor, done: float) -> Tensor:
    """The budget when the share `done` of the training is over: from 1 down to `budget` over the first 40 %."""
    return budget + (1 - budget) * max(0.0, 1 - done / OPEN_UNTIL)


def noise_scale(done: float) -> float:
    """Of the logistic noise on the gates' logits."""
    return 1.0 if done < NOISY_UNTIL else 0.0


def mean_of_groups(values: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """values [B], group [B] int64 -> means [G] (0 for one without frames), and which groups have frames [G] bool."""
    of = functional.one_hot(group, groups).to(values.dtype)
    counts = of.sum(0)
    return (values @ of) / counts.clamp(min=1), counts > 0


def budget_loss(share: Tensor, budget: Tensor, multiplier: Tensor, group: Tensor) -> Tensor:
    """share [B] of the whole network's FLOPs, budget [G], multiplier [G], group [B] -> scalar."""
    means, there = mean_of_groups(share, group, len(budget))
    return (multiplier * (means - budget).clamp(min=0).square() * there).sum()


@torch.no_grad()
def ascend(multiplier: Tensor, share: Tensor, budget: Tensor, group: Tensor) -> Tensor:
    """Dual ascent: the multipliers [G] of the next step, after a batch that took `share` [B].

    On the logarithm: a multiplier of a squared excess has to grow without bound for the excess to vanish.
    """
    means, there = mean_of_groups(share, group, len(budget))
    after = multiplier * torch.exp(ASCENT * (means - budget) * there)
    return after.clamp(LEAST_MULTIPLIER, GREATEST_MULTIPLIER)
