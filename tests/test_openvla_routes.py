"""OpenVLA on routes: its cache, rows of a batch on routes of their own, teacher forcing, routed checkpoints."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_openvla import inputs, load, observation

from vlaad_ray.configs import UserError
from vlaad_ray.models.openvla import preprocess, random_checkpoint
from vlaad_ray.models.openvla.actions import parse_statistics, tokens_to_actions
from vlaad_ray.models.openvla.layered import NO_WORD, cost
from vlaad_ray.models.openvla.routing import ROUTER, ROUTING, write_routing
from vlaad_ray.models.openvla.settings import parse_config
from vlaad_ray.models.vla import routes
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.router import Router
from vlaad_ray.teachers import fingerprint
from vlaad_ray.teachers.openvla import OpenVla

DEPTH = 4


@pytest.fixture(scope="module")
def deep() -> tuple[OpenVla, torch.Tensor, list[list[int]]]:
    """A policy of four decoder layers, the pixels and prompts (of four lengths) of four observations."""
    model = random_checkpoint.random_model("tiny", torch.device("cpu"), torch.float32, layers=DEPTH)
    statistics = parse_statistics(random_checkpoint.statistics_json()["libero_goal_no_noops"], "")
    means = preprocess.Normalisation(((0.5,) * 3,) * 2, ((0.5,) * 3,) * 2)
    policy = OpenVla(model, random_checkpoint.make_tokenizer(), means, statistics)
    return policy, *inputs(policy, [observation(number) for number in range(4)])


def test_shares_of_flops_are_the_published_ones():
    """49.5 % are 14 of 32 layers only if vision, projector and the words are counted as they run."""
    whole = cost(parse_config(random_checkpoint.config_json("full"), Path("config.json")))
    for layers, share in ((14, 49.1), (16, 54.8), (8, 32.2), (2, 15.2)):
        route = routes.of_layers([*range(layers - 1), 31], 32, "")
        assert round(100 * whole.share(route), 1) == share


def test_a_router_of_openvlas_width_has_the_authors_size():
    with torch.device("meta"):
        assert round(sum(each.numel() for each in Router(4096, 32).parameters()) / 1e6, 1) == 4.3


def test_on_all_layers_it_says_what_the_model_says(deep):
    policy, pixels, prompts = deep
    tokens, logits = policy._model.decode(pixels, prompts, 7)
    own_tokens, own_logits = policy._layered.decode(pixels, prompts, 7, lambda seen: torch.ones(4, DEPTH).bool())
    assert torch.equal(own_tokens, tokens)
    torch.testing.assert_close(own_logits, logits, atol=1e-5, rtol=1e-5)


def test_cached_equals_recomputed_on_every_route_of_a_batch(deep):
    """A cache whose length is another layer's, or rows mixed up, shows from the second token on. Recomputed: the row
    alone, unpadded, all tokens at once through transformers' own layers.
    """
    policy, pixels, prompts = deep
    llama = policy._model.language_model
    every = [(True, *inner, True) for inner in itertools.product((False, True), repeat=DEPTH - 2)]
    for shift in range(2):  # each prompt on two routes, and two groups of rows at each layer
        taken = [every[(row + shift) % 4] for row in range(4)]
        tokens, logits = policy._layered.decode(pixels, prompts, 7, lambda seen, taken=taken: torch.tensor(taken))
        for row, route in enumerate(taken):
            said = tokens[row : row + 1, :-1]
            seen = policy._layered.begin(pixels[row : row + 1], [prompts[row]], said)
            hidden = seen.hidden
            with torch.no_grad():
                for layer in itertools.compress(llama.model.layers, route):
                    angles = llama.model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
                    hidden = layer(hidden, position_embeddings=angles)
                recomputed = llama.lm_head(llama.model.norm(hidden))[0, -7:]
            torch.testing.assert_close(logits[row], recomputed, atol=2e-5, rtol=1e-5)
    assert len({tuple(row.tolist()) for row in tokens}) > 1


def test_teacher_forcing_reads_out_the_bins_of_what_was_said(deep):
    """Shifted by one, or read from the wrong end of the vocabulary, a layer's gates would learn from noise."""
    policy, pixels, prompts = deep
    layered, config = policy._layered, policy._model.config
    tokens, logits = policy._model.decode(pixels, prompts, 7)
    assert (tokens >= 32000 - 255).all()  # the random checkpoint prefers action tokens; the highest bin has no centre
    actions = tokens_to_actions(tokens.numpy(), 32000, 256, layered.statistics)
    actions[:, 6] = -np.sign(2 * ((32000 - 1 - tokens[:, 6].numpy()) / 127.5 - 1) - 1)
    again = torch.from_numpy(layered.tokens(torch.from_numpy(actions[:, None])))
    assert torch.equal(again[:, :6], tokens[:, :6])
    words = torch.full((4, max(map(len, prompts))), NO_WORD)
    for row, prompt in enumerate(prompts):
        words[row, : len(prompt)] = torch.tensor(prompt)
    images = torch.zeros(4, 1, 224, 224, 3, dtype=torch.uint8)
    with torch.no_grad():
        seen = layered.embed(images, torch.zeros(4, 8), words, torch.from_numpy(actions[:, None]))
        assert seen.vision.sum(1).tolist() == [256] * 4
        assert seen.text.sum(1).tolist() == [len(prompt) for prompt in prompts]
        seen = layered.begin(pixels, prompts, again[:, :-1])
        bins = layered.readout(gated(layered, seen)[-1], seen)
    assert bins.shape == (4, 1, 7, config.action_bins)
    assert torch.equal(32000 - 1 - bins[:, 0].argmax(-1), tokens)
    torch.testing.assert_close(bins[:, 0].flip(-1), logits[..., 32000 - 256 : 32000], atol=2e-5, rtol=1e-5)


def test_a_routed_directory_acts_on_its_route(openvla_checkpoint: Path, tmp_path: Path):
    """Its two layers always run, so a routed copy must say what the plain one says; and have a name of its own."""
    plain, prepared = load(openvla_checkpoint), preprocess.prepare(observation(1), 224)
    routed = Path(shutil.copytree(openvla_checkpoint, tmp_path / "routed"))
    write_routing(routed, None, route=(True, True))
    again = load(routed)
    assert again._choose is not None
    np.testing.assert_array_equal(again.infer_batch([prepared])[0].actions, plain.infer_batch([prepared])[0].actions)
    assert fingerprint(routed) != fingerprint(openvla_checkpoint)

    asked = Path(shutil.copytree(openvla_checkpoint, tmp_path / "asked"))
    write_routing(asked, Router(64, 2))
    np.testing.assert_array_equal(
        load(asked).infer_batch([prepared])[0].actions, plain.infer_batch([prepared])[0].actions
    )
    (asked / ROUTER).write_bytes((asked / ROUTER).read_bytes()[:-4] + b"\1\0\0\0")
    with pytest.raises(UserError, match="not the file"):
        load(asked)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"route": "1"}, "first and the last"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"schema_version": 9}, "schema version 9"),
        ({"format": "other"}, "not a vlaad_ray routing"),
        ({"route": None}, "router.safetensors is missing"),
    ],
)
def test_broken_routing_is_refused_in_a_line(openvla_checkpoint: Path, tmp_path: Path, change, told):
    """A robot would act with layers that nobody trained to be left out."""
    routed = Path(shutil.copytree(openvla_checkpoint, tmp_path / "routed"))
    write_routing(routed, None, route=(True, True))
    content = json.loads((routed / ROUTING).read_text())
    (routed / ROUTING).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=told):
        load(routed)
