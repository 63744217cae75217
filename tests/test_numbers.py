"""Numbers that are none (NaN, infinity): found where they come in, never trained on, stored, exported or served."""

import dataclasses
import json
import math

import fakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic
import torch

from vlaad_ray import store
from vlaad_ray.annotate import annotate
from vlaad_ray.configs import (
    AnnotateConfig,
    AuditConfig,
    ExportConfig,
    ServeConfig,
    ServedStudentConfig,
    TrainConfig,
    UserError,
)
from vlaad_ray.deploy import exported, server
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.export import export
from vlaad_ray.methods import METHODS
from vlaad_ray.methods.method import Learner
from vlaad_ray.models.student import checkpoint
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.quality.stage import audit
from vlaad_ray.summaries import AuditedCounts
from vlaad_ray.train import resume, train
from vlaad_ray.train.data import episode_frames, gather
from vlaad_ray.train.fit import Progress, Setup, fit, make_optimiser
from vlaad_ray.train.prepare import complete
from vlaad_ray.train.survey import survey

COLUMNS = {"proprio": "proprio", "actions": "action", "executed": "executed"}


def spoil(values, step=3):
    values = values.copy()
    values[step, 1] = math.nan
    return values


def rewrite(path, change):
    """An episode file as nobody of ours would write it."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def with_nan(column, step=3):
    def change(table):
        rows = table[column].to_pylist()
        rows[step][1] = math.nan
        at = table.schema.get_field_index(column)
        return table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type))

    return change


def without_steps(path):
    footer = json.loads(pq.read_schema(path).metadata[b"vlaad_ray"])
    empty = pq.read_table(path).slice(0, 0)
    pq.write_table(empty.replace_schema_metadata({b"vlaad_ray": json.dumps({**footer, "steps": 0})}), path)


@pytest.mark.parametrize("name", COLUMNS)
def test_an_episode_with_a_number_that_is_none_is_never_stored(tmp_path, name):
    whole = fakes.episode()
    broken = dataclasses.replace(whole, **{name: spoil(getattr(whole, name))})
    with pytest.raises(UserError, match=rf"{whole.key.name} is not stored: {COLUMNS[name]} at step 3 is \[.*nan"):
        store.write_episode(tmp_path, broken, {})
    path = store.write_episode(tmp_path / "sound", whole, {})
    with pytest.raises(UserError, match="action at step 3"):
        store.copy_with_actions(path, tmp_path / "copy", spoil(whole.actions), {})
    assert not (tmp_path / "episodes").exists() and not (tmp_path / "copy").exists()


def test_an_episode_without_steps_is_never_stored(tmp_path):
    whole = fakes.episode()
    arrays = {name: getattr(whole, name)[:0] for name in COLUMNS}
    with pytest.raises(UserError, match="is not stored: it has no steps"):
        store.write_episode(tmp_path, dataclasses.replace(whole, **arrays, phases=(), images={}), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("column", COLUMNS.values())
def test_the_survey_names_episode_and_step_of_a_number_that_is_none(tmp_path, column):
    """One NaN in proprio: training ended with exit 0, a checkpoint, and a loss of NaN."""
    data, annotations = synthetic.write_dataset(tmp_path, 2, steps=6)
    path = store.list_episodes(data)[1]
    rewrite(path, with_nan(column))
    with pytest.raises(UserError, match=f"{path.name} is corrupt .{column} at step 3 is"):
        survey(data, annotations, 0.1)


def test_a_stored_episode_without_steps_is_named_and_not_passed_over(tmp_path):
    data, annotations = synthetic.write_dataset(tmp_path, 2, steps=6)
    path = store.list_episodes(data)[0]
    without_steps(path)
    with pytest.raises(UserError, match=f"{path.name} is corrupt .it has no steps"):
        survey(data, annotations, 0.1)


def test_one_broken_episode_is_counted_by_annotation_and_audit_and_named(ray_local, tmp_path):
    data, _ = synthetic.write_dataset(tmp_path, 3, steps=6)
    nan, empty, _ = store.list_episodes(data)
    rewrite(nan, with_nan("proprio"))
    without_steps(empty)
    with pytest.raises(UserError, match="2 of 3 episode files could not be annotated") as raised:
        annotate(AnnotateConfig(data, tmp_path / "notes"))
    assert nan.name in str(raised.value) and empty.name in str(raised.value)
    summary = audit(AuditConfig(tmp_path / "audit", data=data), store.list_episodes(data))
    assert summary.episodes == AuditedCounts(audited=1, failed=0, corrupt=2)
    json.loads((tmp_path / "audit" / "summary.json").read_text(), parse_constant=pytest.fail)


def learning(tmp_path, **changes):
    """All that `fit` needs: a small student on four episodes."""
    data, annotations = synthetic.write_dataset(tmp_path, 4, steps=10)
    config = complete(TrainConfig(data, tmp_path / "out", annotations, **{"epochs": 3, "batch_size": 8, **changes}))
    method = METHODS[config.objective]
    facts = survey(data, annotations, 0.5, method)
    texts = {text: index for index, text in enumerate(facts.texts)}
    phases = {phase: index for index, phase in enumerate(facts.phases)}
    student = SmallConfig(image_size=32, width=8, hidden=32, vocabulary=40, text_length=12)
    parts = (episode_frames(each, texts, phases, student, method.columns) for each in facts.sources)
    frames = gather(parts, facts.frames(student.cameras))
    torch.manual_seed(0)
    learner = method.learner(config.method, SmallStudent(student), facts.phases)
    tokens = torch.ones(len(texts), student.text_length, dtype=torch.int64)
    return Setup(learner, learner, make_optimiser(learner, config), frames, tokens, facts.phases, config, method)


@pytest.mark.parametrize("held_out", [False, True])
def test_training_stops_at_a_loss_that_is_none_before_anything_is_saved(tmp_path, held_out):
    setup = learning(tmp_path)
    rows = setup.frames.validation if held_out else setup.frames.training
    setup.frames.proprio[rows[-1]] = math.nan
    saved = []
    with pytest.raises(UserError, match=r"training stopped in epoch 1, step .* loss is nan.* lower --lr, now 0.001"):
        fit(setup, Progress(), saved.append)
    assert not saved
    checkpoint.check_finite(tmp_path, setup.learner.state_dict())


def test_training_stops_at_a_gradient_that_is_none(tmp_path):
    """The loss is a number yet; the step would make every weight none, and the last step of all would go unseen."""
    setup = learning(tmp_path, epochs=1)
    parameter = next(setup.learner.parameters())
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="the gradient is"):
        fit(setup, Progress(), lambda _: None)
    checkpoint.check_finite(tmp_path, setup.learner.state_dict())


def test_a_learning_rate_far_too_high_is_one_line_and_leaves_no_student(ray_local, tmp_path):
    data, annotations = synthetic.write_dataset(tmp_path, 4, steps=10)
    config = TrainConfig(data, tmp_path / "out", annotations, epochs=3, batch_size=8, image_size=32, lr=1e30, workers=1)
    with pytest.raises(UserError, match=r"training stopped in epoch .* lower --lr, now 1e\+30") as raised:
        train(config)
    assert "\n" not in str(raised.value)
    assert not (config.out / "checkpoint").exists() and not (config.out / "summary.json").exists()
    for name in config.out.glob("*.json*"):
        for line in name.read_text().splitlines() if name.suffix == ".jsonl" else [name.read_text()]:
            json.loads(line, parse_constant=pytest.fail)


@pytest.fixture
def broken(tmp_path):
    """A checkpoint of an earlier version, which stored what it was given."""
    directory = synthetic.write_student(tmp_path / "student")
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name].flatten()[7] = math.inf
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    del config["files"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_broken_weights_are_never_saved(tmp_path):
    student = checkpoint.from_pretrained(synthetic.write_student(tmp_path / "sound"))
    student.student.proprio_std[2] = math.nan
    with pytest.raises(UserError, match="proprio_std holds NaN or infinity"):
        checkpoint.save_pretrained(tmp_path / "out", student.student, student.tokenizer, {})
    assert not (tmp_path / "out" / "model.safetensors").exists()
    learner = Learner(student.student)
    optimiser = make_optimiser(learner, TrainConfig(tmp_path, tmp_path))
    with pytest.raises(UserError, match="proprio_std holds NaN or infinity"):
        resume.save(tmp_path / "resume", learner, optimiser, Progress())


def test_broken_weights_are_never_loaded_exported_or_served(broken, tmp_path):
    data, _ = synthetic.write_dataset(tmp_path, 2, steps=4)
    out = tmp_path / "export"
    for use in (
        lambda: StudentPolicy.from_pretrained(broken),
        lambda: export(ExportConfig(broken, data, out, backend="onnx", precision="fp32")),
        lambda: server.run(ServeConfig(ServedStudentConfig(broken))),
    ):
        with pytest.raises(UserError, match=r"model\.safetensors: .* holds NaN or infinity"):
            use()
    assert not exported.is_export(out)


def test_no_json_of_ours_holds_what_json_does_not_have(tmp_path):
    """NaN in metrics.jsonl or summary.json is read by Python alone."""
    for number in (math.nan, math.inf, np.float64("nan")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.write_json(tmp_path / "summary.json", {"loss": number})
    assert not list(tmp_path.iterdir())
