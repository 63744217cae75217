"""ActDistill from a teacher's checkpoint to a student within its budget, on real Ray; its store; its resuming."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.configs import ActDistillConfig, DistilConfig, HeadsSettings, ProbeConfig, TrainConfig, UserError
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.distil import distil, probe
from vlaad_ray.distil.probe import Reading, dependence, keep
from vlaad_ray.distil.routes import Looking, count_episode, summarise, write_drawn, write_on_route
from vlaad_ray.distil.training import from_teacher
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.actdistill import kept
from vlaad_ray.methods.actdistill.probing import heads_config
from vlaad_ray.methods.actdistill.teacher import teacher_config
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.student.text import train_tokenizer
from vlaad_ray.models.vla.decoder import gated
from vlaad_ray.models.vla.heads import Heads
from vlaad_ray.models.vla.mini import MiniVla, MiniVlaConfig, cost
from vlaad_ray.models.vla.routes import Cost
from vlaad_ray.summaries import ProbeSummary
from vlaad_ray.train.data import episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, fit, make_optimiser
from vlaad_ray.train.prepare import columns_of, complete
from vlaad_ray.train.resume import restore, save
from vlaad_ray.train.survey import survey
from vlaad_ray.types import Observation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
EPISODES, STEPS, BUDGET = 6, 10, 0.85
HEADS = HeadsSettings(semantics=8, head_width=16)
DISTILLATION = ActDistillConfig(budget=BUDGET)


def write_teacher(directory: Path, seed: int = 0) -> Path:
    """A tiny mini_vla of random weights, each of whose layers makes a difference."""
    tokenizer = train_tokenizer(synthetic.INSTRUCTIONS, 8)
    torch.manual_seed(seed)
    config = MiniVlaConfig(
        image_size=28,
        chunk=2,
        vocabulary=tokenizer.vocabulary,
        text_length=8,
        text_width=16,
        depth=6,
        width=64,
        mlp_width=96,
        heads=1,
        vision_depth=1,
        vision_width=64,
        vision_heads=1,
    )
    teacher = MiniVla(config)
    for layer in teacher.layers:
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.1)
    checkpoint.save_pretrained(directory, teacher, tokenizer, {"render": "fast"})
    return directory


def settings(data: Path, out: Path, **changes: object) -> TrainConfig:
    plain = TrainConfig(data, out, epochs=1, batch_size=8, precision="fp32", validation_fraction=0.3, lr=3e-3)
    return dataclasses.replace(plain, workers=1, cpus_per_worker=1, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distil")
    synthetic.write_dataset(root, EPISODES, STEPS, size=28)
    write_teacher(root / "teacher")
    return root


def probing(root: Path, **changes: object) -> ProbeConfig:
    config = ProbeConfig(root / "teacher", HEADS, train=settings(root / "data", root / "probes"))
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def by_hand(root: Path) -> Path:
    """Probes of heads that nobody has trained, made without Ray."""
    out = root / "by_hand"
    torch.manual_seed(0)
    heads = Heads(heads_config(HEADS, teacher_config(root / "teacher", "--checkpoint")))
    checkpoint.save_tensors(root / "heads.safetensors", heads.state_dict())
    name = checkpoint.checkpoint_name(root / "teacher")
    record = kept.adopt_heads(out, root / "heads.safetensors", heads.config, name)
    reading = Reading(out, root / "teacher", record, (1.0, 2.0, 1.0), 1.5, "cpu")
    for path in store.list_episodes(root / "data"):
        keep(path, store.read_episode(path, images=False), store.read_metadata(path), reading)
    return out


@pytest.fixture(scope="module")
def probed(ray_local: None, root: Path) -> ProbeSummary:
    return probe(probing(root))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_probes_are_what_the_heads_say_of_the_frozen_teacher(root, probed):
    """Row by row, with the teacher and the heads loaded anew: no gates, evaluation mode, in float16."""
    assert (probed.probed, probed.frames, probed.layers) == (EPISODES, EPISODES * STEPS, 6)
    assert len(probed.errors) == len(probed.gate_probe) == 6 and min(probed.gate_probe) > 0
    assert min(probed.milliseconds) > 0
    found = checkpoint.from_pretrained(root / "teacher")
    heads = kept.load_heads(root / "probes")
    path = store.list_episodes(root / "data")[0]
    episode, probes = store.read_episode(path), store.read_probes(root / "probes", path.stem)
    assert probes.steps.tolist() == list(range(STEPS)) and probes.semantics.dtype == np.float16
    step = 3
    images = torch.from_numpy(np.stack([episode.images[camera][step] for camera in found.student.config.cameras]))[None]
    tokens = torch.from_numpy(found.tokenizer([episode.instruction])).long()
    with torch.no_grad():
        inputs = found.student.embed(images, torch.from_numpy(episode.proprio[step])[None], tokens)
        known = heads(gated(found.student, inputs), inputs.present)
    assert np.allclose(probes.actions[step], known.actions.flatten(), atol=1e-4)
    assert np.allclose(probes.semantics[step], known.semantics.flatten(), atol=2e-3)


def test_a_missing_episode_is_made_again_and_comes_out_the_same(root, probed):
    folder = root / "probes" / "probes"
    before = contents(folder)
    first, second = sorted(folder.iterdir())[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])  # as a disk might leave it
    again = probe(probing(root))
    assert (again.probed, again.skipped) == (2, EPISODES - 2)
    assert contents(folder) == before
    assert (again.errors, again.gate_probe) == (probed.errors, probed.gate_probe)


def test_probes_of_another_teacher_or_of_other_data_are_refused_in_one_line(root, by_hand, tmp_path):
    other = write_teacher(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="holds probes of the teacher student-"):
        probe(probing(root, checkpoint=other, train=settings(root / "data", by_hand)))
    config = distilling(root, tmp_path / "out", probes=by_hand)
    with pytest.raises(UserError, match=r"--probes .* are of the teacher student-"):
        distil(dataclasses.replace(config, checkpoint=other))
    data, _ = synthetic.write_dataset(tmp_path / "more", EPISODES + 1, STEPS, size=28)
    with pytest.raises(UserError, match="lacks 1 of the dataset's successful episodes"):
        distil(dataclasses.replace(config, train=settings(data, tmp_path / "out")))
    data, _ = synthetic.write_dataset(tmp_path / "revised", EPISODES, STEPS, size=28)
    path = store.list_episodes(data)[0]
    revised = store.read_episode(path).actions * 0.5
    store.copy_with_actions(path, data, revised, {})
    with pytest.raises(UserError, match="made from another episode of this name"):
        distil(dataclasses.replace(config, train=settings(data, tmp_path / "out")))
    with pytest.raises(UserError, match="needs --probes"):
        distil(dataclasses.replace(config, distillation=ActDistillConfig(budget=BUDGET)))
    with pytest.raises(UserError, match="cannot be met"):
        distil(dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, budget=0.05)))
    assert not (tmp_path / "out").exists()


def distilling(root: Path, out: Path, **changes: object) -> DistilConfig:
    method = dataclasses.replace(DISTILLATION, **changes)
    return DistilConfig(root / "teacher", method, train=settings(root / "data", out))


def test_from_teacher_to_student_on_ray(ray_local, root, by_hand, tmp_path):
    """The commands as they are, for one epoch: the training, the look at the routes, the commonest one of them."""
    config = dataclasses.replace(distilling(root, tmp_path / "run", probes=by_hand), commonest=True)
    found = distil(config)
    assert {"loss_kl", "loss_align", "loss_struct", "loss_act", "loss_share"} <= found.training.train.keys()
    assert found.routes.frames == EPISODES * STEPS and set(found.routes.by_phase) == {"unknown"}
    answers(tmp_path / "run" / "checkpoint")
    answers(tmp_path / "run" / "commonest")
    assert distil(config).routes == found.routes, "a finished run is shown again"


def answers(place: Path) -> np.ndarray:
    """Of a checkpoint as it is deployed."""
    episode = synthetic.episode(0, STEPS, 28)
    images = {camera: frames[0] for camera, frames in episode.images.items()}
    observation = Observation(episode.instruction, episode.proprio[0], images)
    actions = StudentPolicy.from_pretrained(place).infer(observation).actions
    assert actions.shape == (2, 7)
    return actions


def prepared(root: Path, probes: Path, out: Path, **changes: object) -> Callable[[], Setup]:
    """What makes the training of a student afresh, as a worker does."""
    method = dataclasses.replace(DISTILLATION, **{"probes": probes, **changes})
    plain = settings(root / "data", out, epochs=4, annotations=root / "annotations", batch_size=4)
    config, actdistill = complete(from_teacher(plain, root / "teacher", "actdistill", method)), METHODS["actdistill"]
    facts = survey(config.data, config.annotations, config.validation_fraction, actdistill)
    tokenizer = checkpoint.from_pretrained(root / "teacher").tokenizer
    numbered = [{text: index for index, text in enumerate(each)} for each in (facts.texts, facts.phases)]

    def fresh() -> Setup:
        torch.manual_seed(0)
        student = checkpoint.from_pretrained(root / "teacher").student
        columns = columns_of(actdistill, config.method)
        batches = [episode_frames(source, *numbered, student.config, columns) for source in facts.sources]
        learner = actdistill.learner(config.method, student, facts.phases)
        texts, frames = torch.from_numpy(tokenizer(facts.texts)), gather(batches, EPISODES * STEPS)
        return Setup(learner, learner, make_optimiser(learner, config), frames, texts, facts.phases, config, actdistill)

    return fresh


def test_a_student_keeps_to_its_budget_as_it_is_deployed(root, by_hand, tmp_path):
    """Trained as by the command but for Ray; then all frames of the data through the checkpoint that it leaves."""
    setup = prepared(root, by_hand, tmp_path / "out")()
    setup = dataclasses.replace(setup, config=dataclasses.replace(setup.config, epochs=12))
    progress = Progress()
    run(setup, progress)
    tokenizer = checkpoint.from_pretrained(root / "teacher").tokenizer
    student = setup.method.finish(setup.learner)
    checkpoint.save_pretrained(tmp_path / "student", student, tokenizer, {"render": "fast"})
    name = checkpoint.checkpoint_name(tmp_path / "student")
    notes = {path.stem: path for path in store.list_annotations(root / "annotations")}
    looking = Looking(tmp_path / "student", name, notes, "cpu")
    counted = Counter()
    for path in store.list_episodes(root / "data"):
        record = count_episode(path, store.read_episode(path, images=False), {}, looking)
        counted.update({(route, phase): frames for route, phase, frames in record["routes"]})
    taken = summarise(counted, cost(student.config))
    assert taken.frames == EPISODES * STEPS and set(taken.by_phase) == {"approaching", "grasping"}
    assert taken.by_layer[0] == taken.by_layer[-1] == 1
    assert taken.share <= BUDGET + 0.02
    shares = [record["train"]["loss_share"] for record in progress.history]
    assert shares[0] > 0.9, "it starts as its teacher"
    write_on_route(tmp_path / "student", taken.commonest, tmp_path / "commonest")
    write_drawn(tmp_path / "student", counted, tmp_path / "drawn")
    fixed = checkpoint.from_pretrained(tmp_path / "commonest").student
    assert cost(fixed.config).share(fixed.route) == pytest.approx(taken.commonest_share)
    for place in ("student", "commonest", "drawn"):
        assert np.isfinite(answers(tmp_path / place)).all()
    names = {checkpoint.checkpoint_name(tmp_path / place) for place in ("student", "commonest")}
    assert len(names) == 2, "their episodes must not go by one name"


def test_multipliers_and_schedules_survive_a_resume(root, by_hand, tmp_path):
    """What only this method has: noise and budget by how far training has come, and dual ascent's multipliers."""
    fresh = prepared(root, by_hand, tmp_path / "run", budget=0.7, phase_budgets="grasping=0.9")
    whole = run(fresh(), Progress())
    interrupted, progress = fresh(), Progress()
    run(interrupted, progress, stop_after=2)
    save(tmp_path / "saved", interrupted.learner, interrupted.optimiser, progress)
    torch.rand(7)  # another process
    again = fresh()
    progress = restore(tmp_path / "saved", again.learner, again.optimiser)
    resumed = run(again, progress)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["multiplier"].shape == (2,)
    assert progress.history[2]["train"]["loss_multiplier"] > 1, "there was something to lose"


def run(setup: Setup, progress: Progress, stop_after: int = 0) -> dict[str, torch.Tensor]:
    class Stop(Exception):
        pass

    def on_epoch(progress: Progress) -> None:
        if progress.epoch == stop_after:
            raise Stop

    with contextlib.suppress(Stop):
        fit(setup, progress, on_epoch)
    return {name: tensor.clone() for name, tensor in setup.learner.state_dict().items()}


def test_gate_probe_by_hand():
    """A scalar is doubled, then tripled: dL/dh_1 = 3, dL/dh_2 = 1; frames of opposite signs add up."""
    start = torch.tensor([[[1.0]], [[-2.0]]], requires_grad=True)
    first = 2 * start
    second = 3 * first
    found = dependence(second.sum(), [start, first, second])
    assert found.tolist() == [3 * 1 + 3 * 2, 4 + 8]


def test_routes_are_summed_up_by_hand():
    counted = {("0,3", "grasping"): 1, ("0-1,3", "grasping"): 1, ("0-1,3", "placing"): 2}
    found = summarise(counted, Cost(fixed=2.0, layer=2.0, depth=4))
    assert (found.frames, found.layers, found.by_layer) == (4, 2.75, (1, 0.75, 0, 1))
    assert found.share == pytest.approx((0.6 + 3 * 0.8) / 4)
    assert found.by_phase == {"grasping": 2.5, "placing": 3}
    assert (found.commonest, found.commonest_frames, found.commonest_share) == ("0-1,3", 0.75, 0.8)
