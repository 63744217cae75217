"""Heads: the graph head against two loops over its definition; padding and neighbours' order must not matter."""

import math

import pytest
import torch

from vlaad_ray.models.vla.heads import GraphPool, Head, Heads, HeadsConfig, parameters_of

CONFIG = HeadsConfig(layers=2, layer_width=12, chunk=3, action_dim=2, semantics=6, width=8, neighbours=3)


def by_loops(pool: GraphPool, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """One row: tokens [T, W], seen [T] -> [W], token by token and neighbour by neighbour."""
    count, width = tokens.shape
    lists = []
    for i in range(count):
        affinity = {
            j: float(pool.phi.weight @ tokens[i] @ (pool.psi.weight @ tokens[j])) / math.sqrt(width)
            for j in range(count)
            if seen[j] or j == i
        }
        nearest = sorted((j for j in affinity if j != i), key=lambda j: -affinity[j])[: pool.neighbours]
        total = sum(math.exp(affinity[j]) for j in [i, *nearest])
        lists.append({j: math.exp(affinity[j]) / total for j in [i, *nearest]})
    for attention in pool.rounds:
        after = torch.zeros_like(tokens)
        for head in range(attention.heads):
            weight = attention.values.weight[head * width : (head + 1) * width]
            for i, weights in enumerate(lists):
                strength = {}
                for j, share in weights.items():
                    edge = attention.receiver[head] @ weight @ tokens[i] + attention.sender[head] @ weight @ tokens[j]
                    strength[j] = share * math.exp(edge if edge > 0 else 0.2 * edge)
                for j, value in strength.items():
                    after[i] += value / sum(strength.values()) * (weight @ tokens[j]) / attention.heads
        tokens = after.clamp(min=0)
    scores = [math.exp(pool.score(tokens[i])) for i in range(count) if seen[i]]
    rows = [tokens[i] for i in range(count) if seen[i]]
    return sum(score / sum(scores) * row for score, row in zip(scores, rows, strict=True))


@torch.no_grad()
def test_the_graph_is_what_its_definition_says_neighbour_by_neighbour():
    torch.manual_seed(0)
    pool = GraphPool(CONFIG)
    tokens, seen = torch.randn(2, 7, CONFIG.width), torch.ones(2, 7, dtype=torch.bool)
    seen[1, 2:4] = False
    found = pool(tokens, seen)
    for row in range(2):
        assert torch.allclose(found[row], by_loops(pool, tokens[row], seen[row]), atol=1e-5)


@pytest.mark.parametrize("kind", ["graph", "mean"])
@torch.no_grad()
def test_a_rows_answer_does_not_depend_on_padding_or_on_the_rest_of_the_batch(kind):
    """The authors' heads pool padded tokens."""
    torch.manual_seed(0)
    head = Head(HeadsConfig(**{**vars(CONFIG), "kind": kind}))
    state = torch.randn(1, 5, CONFIG.layer_width)
    alone = head(state, torch.ones(1, 5, dtype=torch.bool))
    padded = torch.cat([state, 100 * torch.randn(1, 4, CONFIG.layer_width)], 1)
    seen = torch.tensor([[True] * 5 + [False] * 4, [True] * 9])
    among = head(torch.cat([padded, torch.randn(1, 9, CONFIG.layer_width)]), seen)
    for own, other in zip(alone, among, strict=True):
        assert torch.allclose(own[0], other[0], atol=1e-5)


@torch.no_grad()
def test_large_states_do_not_overflow():
    """exp of unscaled products does, at the widths of a 7B network."""
    head = Head(CONFIG)
    known = head(1e4 * torch.randn(1, 6, CONFIG.layer_width), torch.ones(1, 6, dtype=torch.bool))
    assert all(torch.isfinite(each).all() for each in known)
    few = head(torch.randn(1, 2, CONFIG.layer_width), torch.tensor([[True, False]]))
    assert all(torch.isfinite(each).all() for each in few), "fewer tokens than neighbours"


def test_the_mean_head_is_as_large_as_the_graph_and_7b_takes_two_million_a_layer():
    graph = HeadsConfig(layers=32, layer_width=4096, chunk=1, action_dim=7, semantics=512)
    mean = HeadsConfig(**{**vars(graph), "kind": "mean"})
    assert parameters_of(mean) == pytest.approx(parameters_of(graph), rel=0.01)
    assert 1.5e6 < parameters_of(graph) / 32 < 2.5e6


def test_heads_answer_for_every_layer_and_learn():
    torch.manual_seed(0)
    heads = Heads(CONFIG)
    states = [torch.randn(16, 5, CONFIG.layer_width) for _ in range(2)]
    target = torch.randn(16, 1, 3, 2)
    optimiser = torch.optim.Adam(heads.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        known = heads(states, torch.ones(16, 5, dtype=torch.bool))
        loss = (known.actions - target).square().mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(loss.item())
    assert known.semantics.shape == (16, 2, 6) and known.actions.shape == (16, 2, 3, 2)
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in heads.parameters()), "a worker's reducer waits for them all"
