"""Exported policies answer as torch does, load without the student's code, and refuse what is not whole."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from vlaad_ray.configs import BenchPolicyConfig, ExportConfig, UserError
from vlaad_ray.deploy import convert, exported, loading
from vlaad_ray.deploy.backends import BACKENDS, Runtime, open_vino
from vlaad_ray.deploy.backends.graphs import PARTS
from vlaad_ray.deploy.backends.pytorch import TorchBackend
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.experiments.bench import policy as bench
from vlaad_ray.experiments.bench.latency import time_calls
from vlaad_ray.export import agreement, compare, decisive, export, real_frames, same_bins
from vlaad_ray.models.student import STUDENTS, checkpoint
from vlaad_ray.models.student.clip import ClipConfig, ClipStudent
from vlaad_ray.models.student.model import Decoded, Student, StudentConfig
from vlaad_ray.models.student.presets import Preset
from vlaad_ray.models.student.small import SmallConfig, SmallStudent
from vlaad_ray.models.student.text import CLIP_MARKS, train_tokenizer
from vlaad_ray.types import Observation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

TEXTS = ("push", "pick up the red cup and put it right between the plate and the stove")
"""Far apart in length: a graph with either length frozen into it would get the other one wrong."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("dataset"), 4, steps=20, size=64)[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; statistics of proprioception as in LIBERO, where a finger's position varies by millimetres."""
    path = tmp_path_factory.mktemp("small")
    tokenizer = train_tokenizer([*synthetic.INSTRUCTIONS, *TEXTS], 40)
    torch.manual_seed(0)
    student = SmallStudent(
        SmallConfig(image_size=48, width=8, hidden=32, text_length=40, vocabulary=tokenizer.vocabulary)
    )
    torch.nn.init.normal_(student.head[-1].weight, std=0.3)
    student.proprio_mean += torch.linspace(-0.5, 0.9, 8)
    student.proprio_std *= 0.01
    checkpoint.save_pretrained(path, student, tokenizer, {"render": "fast", "init_states": {}})
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer([*synthetic.INSTRUCTIONS, *TEXTS], 40, CLIP_MARKS)
    assert tokenizer.end is not None
    torch.manual_seed(0)
    sizes = {"vision_width": 32, "vision_layers": 2, "vision_heads": 2, "vision_mlp": 64, "text_width": 32}
    sizes |= {"text_layers": 2, "text_heads": 2, "text_mlp": 64, "width": 32, "layers": 1, "heads": 2, "mlp": 32}
    config = ClipConfig(
        image_size=32, vocabulary=tokenizer.vocabulary, text_length=40, end_token=tokenizer.end, **sizes
    )
    checkpoint.save_pretrained(path, ClipStudent(config), tokenizer, {"render": "fast"})
    return path


@pytest.fixture(scope="module")
def graphs(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small student's graphs in ONNX, as an exported directory."""
    path = tmp_path_factory.mktemp("onnx")
    manifest = convert.convert(checkpoint.from_pretrained(small), "student-00000000", path, "onnx", "fp32")
    exported.write_manifest(path, manifest)
    return path


def observation(step: int = 0, instruction: str = TEXTS[0]) -> Observation:
    episode = synthetic.episode(0, steps=8, size=64)
    proprio = np.linspace(-0.5, 0.9, 8, dtype=np.float32) + 0.01 * episode.proprio[step]
    return Observation(instruction, proprio, {camera: frames[step] for camera, frames in episode.images.items()})


def logits(policy: StudentPolicy, observations: list[Observation]) -> torch.Tensor:
    return torch.from_numpy(policy.backend.output(*policy.prepare(observations)))


OBSERVATIONS = [observation(step, text) for step in range(8) for text in TEXTS]


def test_an_export_answers_as_torch_does_and_is_a_policy_like_any_other(small, data, tmp_path):
    summary = export(ExportConfig(small, data, tmp_path, "openvino", "fp32", frames=40))
    assert summary["accepted"]
    assert summary["agreement"]["frames"] == 40
    assert summary["agreement"]["greedy_bins"] >= 0.99
    ours, torchs = StudentPolicy.from_pretrained(tmp_path, execute=3), StudentPolicy.from_pretrained(small, execute=3)
    for text in TEXTS:
        given, expected = (policy.infer(observation(1, text)).actions for policy in (ours, torchs))
        # Sums in another order; a value at which two bins change places would show as 1 / 128 or more.
        np.testing.assert_allclose(given, expected, atol=1e-4)
    described = loading.describe(tmp_path)
    assert described.name.startswith(f"{checkpoint.checkpoint_name(small)}-openvino-fp32-")
    assert described.training == checkpoint.from_pretrained(small).training
    assert described.interface == loading.describe(small).interface


def test_onnx_answers_as_torch_does_whatever_else_is_in_the_batch(small, graphs):
    policy = StudentPolicy.from_pretrained(graphs, backend="onnx")
    expected = logits(StudentPolicy.from_pretrained(small), OBSERVATIONS)
    torch.testing.assert_close(logits(policy, OBSERVATIONS), expected, atol=1e-4, rtol=1e-4)
    (alone,) = policy.infer_batch(OBSERVATIONS[3:4])
    # The bins' mean is taken for all at once: sums in another order.
    np.testing.assert_allclose(policy.infer_batch(OBSERVATIONS)[3].actions, alone.actions, atol=1e-6)
    assert policy.infer_batch([]) == []


def test_clip_exports_with_texts_of_any_length_and_loads_without_transformers(clip, data, tmp_path):
    """transformers takes half a gigabyte, and its masks are made by code that looks at the text."""
    pretrained = checkpoint.from_pretrained(clip)
    exported.write_manifest(tmp_path, convert.convert(pretrained, "student-00000000", tmp_path, "openvino", "fp32"))
    expected = logits(StudentPolicy.from_pretrained(clip), OBSERVATIONS)
    # OpenVINO's exponential and GELU are approximations good to 1e-4 or so.
    torch.testing.assert_close(
        logits(StudentPolicy.from_pretrained(tmp_path), OBSERVATIONS), expected, atol=1e-3, rtol=1e-3
    )
    code = (
        "import sys; from vlaad_ray.deploy.policy import StudentPolicy; "
        f"StudentPolicy.from_pretrained({str(tmp_path)!r}).reset('push'); "
        "print(sorted({'transformers', 'vlaad_ray.models.student.clip', 'ray', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9), ("int8", 0.6)])
def test_lower_precision_keeps_proprioception_and_most_decisions(small, graphs, data, tmp_path, precision, least):
    """Statistics in fp16 would blur the fingers' millimetres (4 % of the bins of a trained student)."""
    _, calibration = real_frames(data, ("agentview", "wrist"), 20, 20)
    policy = StudentPolicy.from_pretrained(small)
    open_vino.write_graphs(graphs, tmp_path, precision, [policy.prepare([each]) for each in calibration])
    backend = exported.open_graphs(tmp_path, "openvino", precision, 1, loading.describe(small).interface)
    seen = policy.prepare(OBSERVATIONS)
    expected, given = policy.backend.output(*seen), backend.output(*seen)
    found = same_bins(expected, given) | agreement(backend.decode(expected), backend.decode(given))
    # Random weights make close calls everywhere; a trained student is measured by jobs/export.py.
    assert found["greedy_bins"] >= least
    assert found["gripper"] >= least
    images, proprio, text = (each[:1] for each in seen)
    near = proprio + np.float32([0, 0, 0, 0, 0, 0, 0, 1e-3])
    told_apart = np.abs(backend.output(images, near, text) - backend.output(images, proprio, text)).max()
    expected = np.abs(policy.backend.output(images, near, text) - policy.backend.output(images, proprio, text)).max()
    assert told_apart == pytest.approx(expected, rel=0.5)


def test_torch_in_bf16_really_holds_bf16_but_for_head_and_statistics(small):
    """Under autocast alone, fp32 weights would be converted at every call: more bytes moved, not fewer."""
    student = checkpoint.from_pretrained(small).student
    TorchBackend(student, "cpu", "bf16")
    kinds = {name: tensor.dtype for name, tensor in student.state_dict().items()}
    assert {kinds[name] for name in kinds if name.startswith(("cameras", "text"))} == {torch.bfloat16}
    assert {kinds[name] for name in kinds if name.startswith(("head", "proprio_"))} == {torch.float32}
    found = compare(small, StudentPolicy.from_pretrained(small, dtype="bf16"), OBSERVATIONS)
    assert found["greedy_bins"] >= 0.9
    assert found["gripper"] >= 0.9


def test_an_export_that_disagrees_is_an_error_and_does_not_load(small, graphs, data, tmp_path, monkeypatch):
    def spoilt(*_: object) -> tuple[StudentPolicy, int]:  # converting takes seconds
        shutil.copytree(graphs, tmp_path, dirs_exist_ok=True)
        pretrained = checkpoint.from_pretrained(small)
        with torch.no_grad():
            pretrained.student.head[-1].bias += torch.linspace(-9, 9, len(pretrained.student.head[-1].bias))
        return StudentPolicy(loading.in_torch(pretrained)), 0

    monkeypatch.setattr("vlaad_ray.export.build", spoilt)
    with pytest.raises(UserError, match=r"% of bins and .* % of gripper commands, below the bar of 99 %"):
        export(ExportConfig(small, data, tmp_path, "onnx", "fp32", frames=20))
    assert not json.loads((tmp_path / "summary.json").read_text())["accepted"]
    with pytest.raises(UserError, match="is not a vlaad_ray student"):
        StudentPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "onnx", "precision": "bf16"}, "onnx runs fp32 here"),
        ({"frames": 10_000}, "gives 80 frames"),
        ({"precision": "int8", "frames": 20, "calibration": 10_000}, "lower --calibration"),
    ],
)
def test_what_cannot_be_exported_is_said_before_any_work(small, data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        export(dataclasses.replace(ExportConfig(small, data, tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def edit(directory: Path, **changes: object) -> None:
    path = directory / exported.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: (path / "perceive.onnx").write_bytes((path / "perceive.onnx").read_bytes()[:-9]),
            "is not the file",
        ),
        (lambda path: (path / "decide.onnx").unlink(), "decide.onnx is missing"),
        (lambda path: (path / "export.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "export.json").write_text("[]"), "is not a vlaad_ray export"),
        (lambda path: edit(path, schema_version=99), "schema version 99"),
        (lambda path: edit(path, backend="abacus"), "'abacus'"),
        (lambda path: edit(path, interface={}), "interface has no 'image_size'"),
    ],
)
def test_a_broken_export_is_refused_by_name(graphs, tmp_path, spoil, message):
    shutil.copytree(graphs, tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(UserError, match=message):
        StudentPolicy.from_pretrained(tmp_path / "copy")


def test_a_directory_is_not_run_in_what_it_was_not_made_for(small, graphs):
    with pytest.raises(UserError, match=r"jobs/export.py --checkpoint .* --backend openvino"):
        StudentPolicy.from_pretrained(small, backend="openvino")
    with pytest.raises(UserError, match="exported for onnx"):
        StudentPolicy.from_pretrained(graphs, backend="torch")
    with pytest.raises(UserError, match="as it was exported"):
        StudentPolicy.from_pretrained(graphs, dtype="bf16")


def test_an_export_of_before_there_was_a_choice_of_robots_is_liberos(graphs, tmp_path):
    """Exports cost minutes and calibration: those that lack the robot's sizes must go on loading."""
    shutil.copytree(graphs, tmp_path / "copy")
    content = json.loads((tmp_path / "copy" / exported.MANIFEST).read_text())
    for name in ("action_dim", "proprio_dim", "gripper"):
        del content["interface"][name]
    edit(tmp_path / "copy", interface=content["interface"])
    assert loading.describe(tmp_path / "copy") == loading.describe(graphs)
    StudentPolicy.from_pretrained(tmp_path / "copy").infer(observation())


@dataclasses.dataclass(frozen=True)
class RegressingConfig(StudentConfig):
    architecture = "regressing"


class Regressing(Student):
    """Answers with two numbers for a robot without gripper, not with bins; says half of them."""

    def __init__(self, config: RegressingConfig):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocabulary, config.text_width)
        self.head = torch.nn.Linear(config.proprio_dim + config.text_width + 1, config.chunk * config.action_dim)

    def embed_text(self, tokens):
        return self.words(tokens).mean(1)

    def perceive(self, images, proprio, instruction):
        bright = images.float().mean((1, 2, 3, 4))[:, None] / 255
        return torch.cat([self.normalised_proprio(proprio), instruction, bright], 1)

    def decide(self, features, description=None):
        return self.head(features).view(-1, self.config.chunk, self.config.action_dim)

    def decode(self, output):
        return Decoded((output / 2).tanh())

    def trunk(self):
        return [self.words]

    def summarise(self, features):
        return features

    def imitation_loss(self, output, actions, weights, smoothing):
        return (output - actions).square().mean()

    def right(self, output, actions):
        return (output == actions), (output == actions)


def test_a_student_without_bins_or_gripper_is_exported_and_compared_by_its_actions(data, tmp_path, monkeypatch):
    """There were no bins to decode or to compare, and 7 numbers with a gripper were taken for granted."""
    preset = Preset(architecture="regressing", network=lambda: (RegressingConfig, Regressing))
    monkeypatch.setitem(STUDENTS, "regressing", preset)
    tokenizer = train_tokenizer(TEXTS, 24)
    sizes = {"action_dim": 2, "gripper": None, "text_length": 24, "vocabulary": tokenizer.vocabulary, "image_size": 32}
    torch.manual_seed(0)
    student = Regressing(RegressingConfig(text_width=8, **sizes))
    checkpoint.save_pretrained(tmp_path / "student", student, tokenizer, {"render": None})
    manifest = convert.convert(checkpoint.from_pretrained(tmp_path / "student"), "s", tmp_path / "out", "onnx", "fp32")
    exported.write_manifest(tmp_path / "out", manifest)
    policy = StudentPolicy.from_pretrained(tmp_path / "out")
    expected = StudentPolicy.from_pretrained(tmp_path / "student").infer(observation())
    np.testing.assert_allclose(policy.infer(observation()).actions, expected.actions, atol=1e-5)
    assert (expected.actions.shape, expected.closing) == ((5, 2), None)
    found = compare(tmp_path / "student", policy, OBSERVATIONS)
    assert decisive(found) == {"actions": 1.0}
    assert not {"greedy_bins", "gripper"} & found.keys()


def test_a_backend_from_outside_is_one_line(graphs, tmp_path, monkeypatch):
    """Its name stood in types and ladders of ifs: a plugin's exports could not be made, named or opened."""
    shutil.copytree(graphs, tmp_path / "copy")
    edit(tmp_path / "copy", backend="elsewhere")
    with pytest.raises(UserError, match="unknown backend 'elsewhere'"):
        StudentPolicy.from_pretrained(tmp_path / "copy")
    runtime = Runtime("vlaad_ray.deploy.backends.onnx_runtime", ("fp32",), ("onnxruntime",), "onnx")
    monkeypatch.setitem(BACKENDS, "elsewhere", runtime)
    policy = StudentPolicy.from_pretrained(tmp_path / "copy", backend="elsewhere")
    assert policy.backend.name == "elsewhere-fp32"
    expected = StudentPolicy.from_pretrained(graphs).infer(observation())
    np.testing.assert_array_equal(policy.infer(observation()).actions, expected.actions)
    convert.check_backend("elsewhere", "fp32")
    with pytest.raises(UserError, match="elsewhere runs fp32 here; int8 needs --backend openvino"):
        convert.check_backend("elsewhere", "int8")


def test_every_part_has_its_own_files():
    """Two parts that shared a file would overwrite each other, and still load."""
    for backend in BACKENDS:
        names = exported.graph_files(backend)
        assert len(set(names)) == len(names) >= len(PARTS)


def test_the_benchmark_measures_a_student_in_a_process_of_its_own(small, tmp_path):
    config = BenchPolicyConfig(str(small), tmp_path, backends=("torch-fp32",), calls=3, threads=1, teacher="none")
    summary = bench.bench_policy(config)
    assert json.loads((tmp_path / "summary.json").read_text())["backends"].keys() == {"torch-fp32"}
    entry = summary["backends"]["torch-fp32"]
    assert entry["actions_per_second"] == pytest.approx(5 * entry["inferences_per_second"])
    assert 0 < entry["p50_ms"] <= entry["p99_ms"]
    # A Python with torch in it; this process, with Ray, a simulator and three runtimes, holds far more.
    assert 50 < entry["peak_memory_mb"] < 600
    assert summary["parameters"]["total"] == summary["parameters"]["trainable"] > 0
    bench.show(summary)


def test_calls_that_warm_up_do_not_count():
    seen = []
    timed = time_calls(seen.append, warm=2, calls=4)
    assert seen == list(range(7))
    assert timed["calls"] == 4


def test_the_teacher_is_extrapolated_layer_by_layer_or_not_at_all():
    """On a busy machine three layers may seem quicker than one, and the whole would take less than no time."""
    one = {"fastest_ms": 100.0, "peak_memory_mb": 3000.0, "parameters": 1_000e6}
    three = {"fastest_ms": 120.0, "peak_memory_mb": 4100.0, "parameters": 1_400e6}
    whole = bench.extrapolate(one, three)
    assert (whole["fastest_ms"], whole["peak_memory_mb"], whole["parameters"]) == (410, 15_400, 7_200e6)
    assert whole["inferences_per_second"] == pytest.approx(1000 / 410)
    with pytest.raises(UserError, match="too busy"):
        bench.extrapolate(three, one)


def test_only_backends_on_the_teachers_device_are_held_against_it():
    rates = {"cuda-bf16": {"inferences_per_second": 500.0}, "torch-bf16": {"inferences_per_second": 16.0}}
    assert bench.ratio(rates, {"device": "cpu", "inferences_per_second": 0.1}) == pytest.approx(160)
    assert bench.ratio(rates, {"device": "cuda", "inferences_per_second": 10.0}) == pytest.approx(50)
