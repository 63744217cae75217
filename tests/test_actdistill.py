"""ActDistill's losses by hand, its multiplier on a toy, static choices, and a student that begins as its teacher."""

import dataclasses
import math

import pytest
import torch

from vlaad_ray.configs import ActDistillConfig, UserError
from vlaad_ray.methods.actdistill import kept, learner, losses, selecting
from vlaad_ray.methods.actdistill.learner import Distiller
from vlaad_ray.methods.method import Batch
from vlaad_ray.models.vla.heads import Heads, HeadsConfig, Known
from vlaad_ray.models.vla.mini import MiniVla, MiniVlaConfig
from vlaad_ray.models.vla.router import hard_gates, with_ends
from vlaad_ray.models.vla.routes import Cost, written

TINY = MiniVlaConfig(
    image_size=28,
    chunk=2,
    bins=16,
    vocabulary=40,
    text_length=8,
    text_width=16,
    depth=5,
    width=32,
    mlp_width=48,
    heads=2,
    vision_depth=1,
    vision_width=16,
    vision_heads=2,
)
COST = Cost(fixed=20.0, layer=8.0, depth=10)


def known(semantics: list, actions: list) -> Known:
    return Known(torch.tensor(semantics), torch.tensor(actions))


def test_layers_weigh_as_their_depth_to_gamma_with_mean_one_and_the_first_nothing():
    assert losses.layer_weights(4, 2.0).tolist() == pytest.approx([0, 1 / 9 * 18 / 7, 4 / 9 * 18 / 7, 18 / 7])
    even = losses.layer_weights(4, 0.0)
    assert even.tolist() == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3]), "0 ** 0 is 1"


def test_layer_losses_by_hand():
    """Two frames, two layers, semantics of two numbers, one action of one number."""
    student = known([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]]], [[[[0.0]], [[0.5]]], [[[1.0]], [[1.0]]]])
    teacher = known([[[2.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]], [[[[0.0]], [[0.0]]], [[[0.0]], [[1.0]]]])
    actions = torch.tensor([[[1.0]], [[1.0]]])
    found = losses.layer_losses(student, teacher, actions)
    assert found.align.tolist() == pytest.approx([0.5, 0.5]), "1 - cosine, of frames 0 and 1: 0, 1 and 1, 0"
    # Layer 0: the student's frames are alike (cosine 1), the teacher's are at right angles; layer 1: the other way.
    assert found.struct.tolist() == pytest.approx([2 / 4, 2 / 4])
    first = (1.0 + 0.0) / 2 + (0.0 + 1.0) / 2 + 0.0
    second = (0.25 + 0.0) / 2 + (0.25 + 0.0) / 2 + (0.25 + 0.0) / 2
    assert found.act.tolist() == pytest.approx([first, second])


def test_the_layer_before_is_a_target_that_learns_nothing_from_it():
    said = torch.zeros(1, 2, 1, 1, requires_grad=True)
    student = Known(torch.ones(1, 2, 3), said)
    teacher = known([[[1.0] * 3] * 2], [[[[0.0]], [[0.0]]]])
    shifted = Known(student.semantics, said + torch.tensor([[[[0.0]], [[1.0]]]]))
    losses.layer_losses(shifted, teacher, torch.zeros(1, 1, 1)).act[1].backward()
    assert said.grad.flatten().tolist() == pytest.approx([0.0, 2.0 + 2.0 + 2.0])


def test_divergence_by_hand_and_whose_is_whose():
    teacher, student = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert losses.divergence(teacher.view(1, 1, 1, 2), student.view(1, 1, 1, 2)).item() == pytest.approx(by_hand)


def test_the_budget_falls_to_its_target_and_the_noise_ends():
    target = torch.tensor([0.5])
    assert [losses.scheduled_budget(target, done).item() for done in (0, 0.2, 0.4, 1)] == pytest.approx(
        [1, 0.75, 0.5, 0.5]
    )
    assert (losses.noise_scale(0.66), losses.noise_scale(0.67)) == (1.0, 0.0)


def test_budget_loss_counts_the_excess_of_a_groups_mean_not_of_single_frames():
    share, group = torch.tensor([0.4, 0.8, 0.9]), torch.tensor([0, 0, 2])
    found = losses.budget_loss(share, torch.tensor([0.6, 0.1, 0.5]), torch.tensor([10.0, 10.0, 2.0]), group)
    assert found.item() == pytest.approx(2 * 0.4**2), "group 0 is in its budget on average, group 1 has no frame"
    after = losses.ascend(torch.tensor([8.0, 8.0, 8.0]), share, torch.tensor([0.7, 0.1, 0.5]), group)
    assert after.tolist() == pytest.approx([8 * math.exp(-0.1), 8, 8 * math.exp(0.4)])


def test_dual_ascent_reaches_the_budget_on_a_toy_and_keeps_the_layers_that_count():
    """Eight layers, each of which lowers a loss by another amount: five must go, the useless ones first."""
    torch.manual_seed(0)
    worth = torch.tensor([0.01, 0.3, 0.02, 0.2, 0.4, 0.015, 0.25, 0.03])
    logits = torch.full((8,), 2.0, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 5e-2)
    multiplier, budget, steps = torch.ones(1), torch.tensor([0.6]), 300
    group = torch.zeros(32, dtype=torch.int64)
    for step in range(steps):
        done = step / steps
        noise = losses.noise_scale(done)
        batch = logits.expand(32, -1)
        gates = hard_gates(batch, noise)
        probability = with_ends(batch.sigmoid()) if noise else gates
        share = (20 + 8 * probability.sum(1)) / 100
        allowed = losses.scheduled_budget(budget, done)
        task = ((1 - gates[:, 1:-1]) * worth).sum(1).mean()
        loss = task + losses.budget_loss(share, allowed, multiplier.clone(), group)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        multiplier = losses.ascend(multiplier, (20 + 8 * gates.detach().sum(1)) / 100, allowed, group)
    assert (logits > 0).nonzero().flatten().tolist() == [1, 4, 6], "the three that the budget has room for"


def test_static_choices_fill_the_budget_and_say_what_cannot_be():
    """Ten layers of 8 % each, 20 % that always run: 60 % hold five layers."""
    first = selecting.route_of(ActDistillConfig(select="first", budget=0.6), COST)
    assert written(first) == "0-3,9"
    assert written(selecting.most_needed((0, 5, 1, 9, 2, 8, 3, 7, 4, 0), 5)) == "0,3,5,7,9"
    assert written(selecting.route_of(ActDistillConfig(select="0,2,9", budget=0.6), COST)) == "0,2,9"
    assert selecting.route_of(ActDistillConfig(), COST) is None
    with pytest.raises(UserError, match=r"--budget 0.3 cannot be met: .* take 0.360"):
        selecting.route_of(ActDistillConfig(select="first", budget=0.3), COST)
    with pytest.raises(UserError, match=r"takes 0.680 of the whole; --budget 0.6 allows 5 layers"):
        selecting.route_of(ActDistillConfig(select="0-4,9", budget=0.6), COST)
    with pytest.raises(UserError, match="name its directory with --probes"):
        selecting.route_of(ActDistillConfig(select="gateprobe"), COST)


def test_phases_may_have_budgets_of_their_own():
    settings = ActDistillConfig(budget=0.5, phase_budgets="transporting=0.4, grasping=0.8")
    found = selecting.budgets(settings, COST, ("approaching", "grasping", "transporting"))
    assert found == ((0.5, 0.4, 0.8), (0, 2, 1))
    for wrong, said in (
        ("grasp=0.8", "no phase 'grasp'"),
        ("grasping", "'grasping' is none"),
        ("grasping=0.2", "cannot"),
    ):
        with pytest.raises(UserError, match=said):
            selecting.budgets(dataclasses.replace(settings, phase_budgets=wrong), COST, ("grasping",))


@pytest.fixture
def teacher() -> MiniVla:
    torch.manual_seed(0)
    teacher = MiniVla(TINY).eval()
    for layer in teacher.layers:  # so that it makes a difference whether one runs
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.3)
    return teacher


def heads_of(teacher: MiniVla) -> Heads:
    config = teacher.config
    return Heads(HeadsConfig(config.depth, config.width, config.chunk, config.action_dim, semantics=8, width=16))


def batch(teacher: MiniVla, heads: Heads, size: int = 6) -> Batch:
    """Frames with what the heads say of the teacher on them, as stage 1 keeps it."""
    images = torch.randint(0, 256, (size, 2, 28, 28, 3), dtype=torch.uint8)
    instruction = torch.randint(3, 40, (size, 8))
    proprio = torch.randn(size, 8)
    with torch.no_grad():
        inputs = teacher.embed(images, proprio, instruction)
        said = heads(learner.along_route(teacher, inputs, (True,) * teacher.depth), inputs.present)
    columns = {kept.SEMANTICS: said.semantics.flatten(1), kept.ACTIONS: said.actions.flatten(1)}
    phase = torch.arange(size) % 2
    return Batch(images, proprio, instruction, torch.rand(size, 2, 7) * 2 - 1, phase, columns)


def answered(distiller: Distiller, settings: ActDistillConfig, frames: Batch):
    answers = distiller(frames.images, frames.proprio, frames.instruction)
    return answers, *learner.loss(settings, distiller, answers, frames, 1.5)


@torch.no_grad()
def test_the_student_is_its_teacher_before_the_first_step(teacher):
    settings = ActDistillConfig()
    heads = heads_of(teacher)
    frames = batch(teacher, heads)
    distiller = Distiller(settings, teacher, None, heads, group_of_phase=(0, 0)).eval()
    answers, _, parts = answered(distiller, settings, frames)
    whole = teacher(frames.images, frames.proprio, frames.instruction)
    assert torch.allclose(answers.image, whole, atol=1e-5)
    assert parts["share"] == 1
    for name in ("kl", "align", "struct"):
        assert parts[name].abs() < 1e-5, name


def test_only_the_backbone_and_the_router_learn(teacher):
    """Heads that learn, too, meet L_align without it."""
    settings = ActDistillConfig(budget=0.5)
    heads = heads_of(teacher)
    frames = batch(teacher, heads)
    distiller = Distiller(settings, teacher, None, heads, (0.5,), (0, 0)).train()
    distiller.done = 0.3
    answered(distiller, settings, frames)[1].backward()
    learning = {name for name, each in distiller.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"student"}
    assert all(each.grad is not None for each in distiller.parameters() if each.requires_grad), "a reducer waits for it"
    assert distiller.student.router.gates.bias.grad.abs().min() > 0
    assert not distiller.teacher.training and distiller.multiplier.item() != losses.LEAST_MULTIPLIER


def test_a_static_student_trains_the_layers_on_its_route_and_deploys_no_others(teacher):
    settings = ActDistillConfig(select="0,2,4")
    route = (True, False, True, False, True)
    heads = heads_of(teacher)
    frames = batch(teacher, heads)
    distiller = Distiller(settings, teacher, route, heads).train()
    answers, total, parts = answered(distiller, settings, frames)
    total.backward()
    assert all(each.grad is not None for each in distiller.parameters() if each.requires_grad)
    assert [layer.mlp.up_proj.weight.requires_grad for layer in distiller.student.layers] == list(route)
    assert parts["align"] > 1e-5 and "budget" not in parts
    with torch.no_grad():
        deployed = distiller.student.eval()(frames.images, frames.proprio, frames.instruction)
    assert torch.allclose(deployed, answers.image, atol=1e-5)


@torch.no_grad()
def test_training_without_noise_is_what_runs_and_the_authors_gating_is_not(teacher):
    """METHOD: on a small random Llama their two final states have nothing to do with each other."""
    heads = heads_of(teacher)
    frames = batch(teacher, heads)
    far = {}
    for gating in ("residual", "authors"):
        settings = ActDistillConfig(gating=gating, losses="task")
        distiller = Distiller(settings, teacher, None, None)
        torch.nn.init.normal_(distiller.student.router.gates.weight, std=1.0)
        distiller.student.router.gates.bias.zero_()
        distiller.done = 0.9
        trained = distiller.train()(frames.images, frames.proprio, frames.instruction)
        ran = distiller.student.eval()(frames.images, frames.proprio, frames.instruction)
        assert 2 / 5 < trained.ran.mean() < 1
        far[gating] = (trained.image - ran).abs().max().item()
    assert far["residual"] < 1e-4 < 1e-2 < far["authors"]
