"""Decoder layers that are gated in training and skipped at run time: mini_vla, the loops, routes, the router."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlaad_ray.configs import UserError
from vlaad_ray.deploy import exported
from vlaad_ray.deploy.convert import convert
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Batch
from vlaad_ray.models.student import checkpoint, mini_vla
from vlaad_ray.models.student.presets import Wish
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.models.vla import mini, router, routes
from vlaad_ray.models.vla.decoder import gated, routed
from vlaad_ray.models.vla.layered import Inputs
from vlaad_ray.types import Observation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
TEXTS = ("pick up the red cup", "open the drawer", "approaching, moving left")
TINY = mini.MiniVlaConfig(
    image_size=28, depth=4, width=32, mlp_width=48, heads=2, vision_depth=1, vision_width=32, vision_heads=2, bins=16,
    text_length=12, text_width=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TINY.text_length)


@pytest.fixture
def network(tokenizer) -> mini.MiniVla:
    torch.manual_seed(0)
    made = mini.MiniVla(dataclasses.replace(TINY, vocabulary=tokenizer.vocabulary))
    for layer in made.layers:  # as after training: at the start a layer hardly changes what passes it
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture
def seen(tokenizer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, proprioception and instructions of three lengths."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 2, 28, 28, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randn(3, 8, generator=generator), torch.from_numpy(tokenizer(TEXTS))


def rows(inputs: tuple[torch.Tensor, ...], row: int) -> tuple[torch.Tensor, ...]:
    return tuple(each[row : row + 1] for each in inputs)


MIXED = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)


@torch.no_grad()
def test_a_closed_gate_in_training_is_a_skipped_layer_at_run_time(network, seen):
    """The authors' code scales the whole hidden state by its gate, and what is deployed is another network."""
    inputs = network.embed(*seen)
    states = gated(network, inputs, MIXED.float())
    torch.testing.assert_close(states[-1], routed(network, inputs, MIXED), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[1][0], states[0][0], atol=0, rtol=0)
    assert (states[-1] - gated(network, inputs)[-1]).abs().max() > 0.1


@torch.no_grad()
def test_rows_of_a_batch_take_their_own_routes(network, seen):
    """The union of routes, or rows mixed up, would make an answer depend on its neighbours."""
    inputs = network.embed(*seen)
    together = routed(network, inputs, MIXED)
    ran: list[int] = []
    counted = network.layer

    def layer(index: int, hidden: torch.Tensor, of: Inputs) -> torch.Tensor:
        ran.append(len(hidden))
        return counted(index, hidden, of)

    network.layer = layer
    routed(network, inputs, MIXED)
    assert ran == [3, 1, 1, 3]
    for row in range(3):
        alone = network.embed(*rows(seen, row))  # without the padding that the batch's longest text brings
        expected = network.queried(routed(network, alone, MIXED[row : row + 1]))
        torch.testing.assert_close(network.queried(together)[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_training_and_run_time_attend_alike(network, seen):
    """A CPU in training computes attention by hand: forgetting the mask there would train on padding."""
    inputs = network.embed(*seen)
    by_hand = network.layer(0, inputs.hidden, inputs)
    with torch.no_grad():
        kernel = network.layer(0, inputs.hidden, inputs)
        reference = network.layers[0]
        reference.self_attn.is_causal = False
        mask = inputs.present[:, None, None].expand(-1, -1, inputs.hidden.shape[1], -1)
        angles = network.rotary(inputs.hidden, inputs.positions)
        module = reference(inputs.hidden, mask, None, None, False, position_embeddings=angles)
    for other in (kernel, module):
        torch.testing.assert_close(by_hand[inputs.present], other[inputs.present], atol=1e-5, rtol=1e-5)


def test_a_gate_sees_its_own_row_without_padding(network, seen):
    """Pooled padding would let a route depend on how long the other texts of a batch are."""
    gates = router.Router(TINY.width, TINY.depth)
    torch.nn.init.normal_(gates.gates.weight)
    together = gates(network.embed(*seen))
    for row in range(3):
        torch.testing.assert_close(gates(network.embed(*rows(seen, row))), together[row : row + 1])
    assert (together[0] - together[1]).abs().min() > 1e-3


def test_a_hard_gate_has_its_sigmoids_gradient():
    logits = torch.tensor([[0.3, -2.0]], requires_grad=True)
    gates = router.hard_gates(logits)
    assert gates.tolist() == [[1, 1, 0, 1]]
    gates.sum().backward()
    soft = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, soft * (1 - soft))
    assert router.routes_of(logits).tolist() == [[True, True, False, True]]
    torch.manual_seed(0)
    noisy = router.hard_gates(torch.zeros(1, 1000), noise=1.0)
    assert 400 < noisy[0, 1:-1].sum() < 600


@pytest.mark.parametrize(
    ("text", "told"),
    [("1-3", "first and the last"), ("0-2", "first and the last"), ("0-9", "layer 4"), ("0;3", "no route")],
)
def test_a_route_that_no_network_takes_is_refused(text, told):
    with pytest.raises(UserError, match=told):
        routes.parse(text, 4, "--route")


def test_a_route_is_read_as_it_is_written():
    route = routes.parse("0-1, 4,7-9", 10, "--route")
    assert routes.written(route) == "0-1,4,7-9"
    assert sum(route) == 6


def test_flops_are_those_that_torch_counts():
    """At another image size, depth and number of words than the default's: a term left out would show."""
    config = dataclasses.replace(TINY, image_size=42, depth=3)
    network = mini.MiniVla(config).eval()
    tokens = torch.tensor([[1] * 7 + [0] * 5])
    counter = FlopCounterMode(display=False)
    # Attention by matrix products, which the counter knows; the CPU's own kernel it does not.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad(), counter:
        network(torch.zeros(1, 2, 42, 42, 3, dtype=torch.uint8), torch.zeros(1, 8), tokens)
    said = 2 * config.width * config.text_width  # of the one vector in place of a description
    assert counter.get_total_flops() == mini.cost(config, words=7).of(routes.full(3)) + said
    assert config.sizes.layer_parameters == sum(each.numel() for each in network.layers[0].parameters())


def test_the_presets_size():
    design = mini_vla.design(mini_vla.MiniVlaSettings(), Wish(TEXTS))
    assert design.config == dataclasses.replace(mini.MiniVlaConfig(), vocabulary=design.config.vocabulary)
    with torch.device("meta"):
        assert 10e6 < sum(parameter.numel() for parameter in mini.MiniVla(mini.MiniVlaConfig()).parameters()) < 15e6
    with pytest.raises(UserError, match="multiple of 64"):
        mini_vla.check(mini_vla.MiniVlaSettings(width=100), 0)
    with pytest.raises(UserError, match="multiple of 14"):
        mini_vla.check(mini_vla.MiniVlaSettings(), 96)


@pytest.mark.parametrize(
    ("objective", "kind"),
    [("bc", "full"), ("bc", "routed"), ("bc", "fixed"), ("dual_path", "full"), ("auxiliary", "full")],
)
def test_every_objective_trains_all_that_answers(network, seen, tokenizer, objective, kind):
    """A parameter without a gradient makes workers that train together wait for it; and the loss has to fall."""
    kinds = {
        "full": lambda: network,
        "routed": lambda: mini.with_router(network),
        "fixed": lambda: mini.on_route(network, (0, 3)),
    }
    student = kinds[kind]().train()
    method = METHODS[objective]
    torch.manual_seed(0)
    learner = method.learner(method.config(), student, ("approach", "grasp"))
    texts = seen[2]
    batch = Batch(
        *seen, torch.rand(3, 5, 7) * 2 - 1, torch.tensor([0, 1, 0]),
        {"description": torch.tensor([2, 2, 2]), "direction": torch.tensor([0, 1, 2])}, texts,
    )  # fmt: skip
    optimiser = torch.optim.AdamW([each for each in learner.parameters() if each.requires_grad], lr=3e-3)
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            answers = method.forward(method.config(), learner, batch)
        loss, _ = method.loss(method.config(), learner, answers, batch, 1.5)
        optimiser.zero_grad()
        loss.backward()
        absent = [name for name, each in learner.named_parameters() if each.requires_grad and each.grad is None]
        assert not absent
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@contextlib.contextmanager
def saved(student: mini.MiniVla, tokenizer, directory: Path):
    checkpoint.save_pretrained(directory, student, tokenizer, {"objective": "bc"})
    yield directory


def observation(row: int) -> Observation:
    random = np.random.default_rng(row)
    images = {name: random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(TEXTS[row], random.normal(size=8).astype(np.float32), images)


def test_a_routed_checkpoint_is_a_policy_like_any_other(network, tokenizer, tmp_path):
    """Router, threshold and route must survive the disk, and a batch of mixed routes must answer as each row alone."""
    student = mini.with_router(network, threshold=0.3)
    assert student.router is not None
    with saved(student, tokenizer, tmp_path / "new") as directory:
        policy = StudentPolicy.from_pretrained(directory)
    three = [observation(row) for row in range(3)]
    inputs = [torch.from_numpy(each) for each in policy.prepare(three)]
    plain = policy.backend.output(*policy.prepare(three))
    with torch.no_grad():
        np.testing.assert_allclose(plain, network.decide(network.perceive(*inputs)), atol=1e-5)  # new gates are open
        torch.nn.init.normal_(student.router.gates.weight)
        order = student.router(student._inputs(*inputs)).sort(0).values
        # One gate is open for one row, the other for two, at this threshold.
        between = torch.stack([order[1:, 0].mean(), order[:2, 1].mean()])
        student.router.gates.bias -= between - torch.logit(torch.tensor(0.3))
    with saved(student, tokenizer, tmp_path / "routed") as directory:
        policy = StudentPolicy.from_pretrained(directory)
    with torch.no_grad():
        taken = router.routes_of(student.router(student._inputs(*inputs)), 0.3)
    assert taken.sum(0).tolist() == [3, 1, 2, 3]
    assert policy.backend.output(*policy.prepare(three)).shape == (3, 5, 7, 16)
    for row, chunk in enumerate(policy.infer_batch(three)):
        np.testing.assert_allclose(chunk.actions, policy.infer(three[row]).actions, atol=1e-5)
        with torch.no_grad():
            state = routed(network, network._inputs(*(each[row : row + 1] for each in inputs)), taken[row : row + 1])
            expected = network.decide(network.queried(state))
        np.testing.assert_allclose(policy.backend.output(*policy.prepare([three[row]])), expected, atol=1e-5)

    with saved(mini.on_route(student, (0, 2, 3)), tokenizer, tmp_path / "fixed") as directory:
        fixed = StudentPolicy.from_pretrained(directory)
    inputs = fixed.prepare([observation(0)])
    with torch.no_grad():
        state = routed(
            network, network._inputs(*map(torch.from_numpy, inputs)), torch.tensor([[True, False, True, True]])
        )
        expected = network.decide(network.queried(state))
    np.testing.assert_allclose(fixed.backend.output(*inputs), expected, atol=1e-5)


def test_a_fixed_route_is_exported_whole_and_a_router_is_refused(network, tokenizer, tmp_path):
    """A graph frozen to the route of the picture that it was traced with would act on it for ever."""
    with saved(mini.on_route(network, (0, 2, 3)), tokenizer, tmp_path / "fixed") as directory:
        read, reference = checkpoint.from_pretrained(directory), StudentPolicy.from_pretrained(directory)
    made = tmp_path / "export"
    exported.write_manifest(made, convert(read, "fixed", made, "onnx", "fp32"))
    policy = StudentPolicy.from_pretrained(made)
    seen = [observation(row) for row in range(3)]  # instructions of three lengths, in one graph
    ours, theirs = (each.backend.output(*each.prepare(seen)) for each in (reference, policy))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)

    with saved(mini.with_router(network), tokenizer, tmp_path / "routed") as directory:
        read = checkpoint.from_pretrained(directory)
    with pytest.raises(UserError, match="fixed route"):
        convert(read, "routed", tmp_path / "none", "onnx", "fp32")


def test_a_checkpoints_impossible_route_is_refused(network, tokenizer, tmp_path):
    with pytest.raises(UserError, match="first and the last"):
        mini.on_route(network, (1, 3))
