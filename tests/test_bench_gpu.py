"""`vlaad bench gpu`: the way to every GPU figure, gone at tiny sizes on a CPU; what is kept, what fails, the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vlaad_ray.annotate import kinds, random_checkpoint, rules
from vlaad_ray.annotate.kinds.kind import Scene
from vlaad_ray.configs import BenchGpuConfig, UserError, VlmConfig
from vlaad_ray.deploy.policy import StudentPolicy
from vlaad_ray.experiments.bench import gpu
from vlaad_ray.experiments.bench.gpu import alone, measure, motion, page, rendering, run, student_training
from vlaad_ray.experiments.bench.gpu.record import Record
from vlaad_ray.experiments.bench.latency import random_observations

MACHINE = {
    "gpu": "NVIDIA Abacus",
    "gpu_memory_gib": 23.6,
    "compute_capability": "8.9",
    "cuda": "13.0",
    "fp32_products": "highest",
    "driver": "580.1",
    "cpu": "A CPU",
    "cpus": 16,
    "python": "3.11.2",
    "versions": {"torch": "2.13.0", "numpy": "2.0"},
    "git_revision": "abc",
}


def tiny(out: Path, *only: str, minutes: float = 60.0) -> BenchGpuConfig:
    return BenchGpuConfig(out, only=only, size="tiny", device="cpu", minutes=minutes)


def request(config: BenchGpuConfig, name: str) -> tuple[str, dict]:
    (piece,) = [each for each in run.pieces(config) if each.name == name]
    return piece.kind, json.loads(json.dumps(dict(piece.request)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A directory in which three sections were measured, and the summary."""
    out = tmp_path_factory.mktemp("gpu")
    return out, gpu.bench_gpu(tiny(out, "student-bf16-eager", "teacher", "training-small"))


@pytest.mark.slow
def test_the_command_measures_stores_and_shows(measured):
    out, summary = measured
    names = ["student-bf16-eager", "teacher-openvla", "training-small-bf16"]
    assert [record.name for record in summary["records"]] == names
    assert [record.problem for record in summary["records"]] == [""] * 3
    text = (out / "gpu.md").read_text()
    for heading in ("The 158 M student", "OpenVLA-7B", "Training", "Student against teacher"):
        assert f"\n## {heading}\n" in text
    assert "no figure here says how fast anything is" in " ".join(text.split())
    assert "- rendering-egl: not asked for" in text
    assert max(map(len, text.splitlines())) <= 120
    gpu.show(summary)
    student, teacher, training = (record.answer for record in summary["records"])
    assert student["batches"].keys() == teacher["batches"].keys() == {"1", "2"}
    assert 0 < student["p50_ms"] <= student["p99_ms"]
    assert training["samples_per_second"] > 0
    assert training["waiting_share"] > 0


@pytest.mark.slow
def test_what_is_there_is_not_measured_again_but_what_was_asked_otherwise_is(measured, monkeypatch):
    """A rerun for one missing section would have taken all ten minutes; a tiny run would have passed for a full one."""
    out, summary = measured
    monkeypatch.setattr(run, "look_at_machine", lambda config: summary["machine"])
    names = [record.name for record in summary["records"]]
    monkeypatch.setattr(alone, "MEASURE", (sys.executable, "-c", "raise SystemExit('measured again')"))
    again = gpu.bench_gpu(tiny(out, *names))
    assert again["measured_now"] == 0
    assert again["records"] == summary["records"]
    config = tiny(out)
    pieces = {each.name: each for each in run.pieces(config)}
    full = {each.name: each for each in run.pieces(BenchGpuConfig(out, device="cpu"))}
    for name in names:
        assert run.known(out, pieces[name], summary["machine"]) is not None
        assert run.known(out, full[name], summary["machine"]) is None
        assert run.known(out, pieces[name], {**summary["machine"], "gpu": "another"}) is None


def fake_pieces(monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
    """Measurements that run code of ours: name -> what it does with FILE, where its answer goes."""
    code = "import json, sys; kind, request, FILE = sys.argv[1:]; exec(json.loads(request)['code'])"
    monkeypatch.setattr(alone, "MEASURE", (sys.executable, "-c", code))
    made = [run.Piece(f"fake-{name}", "fake", {"code": body}, 60.0) for name, body in kinds.items()]
    monkeypatch.setattr(run, "pieces", lambda config: made)
    monkeypatch.setattr(run, "look_at_machine", lambda config: MACHINE)
    monkeypatch.setattr(page, "headline", lambda record: "")


def test_what_fails_is_a_line_and_the_rest_goes_on_and_it_is_tried_again(tmp_path, monkeypatch):
    """One section that does not fit took the whole page with it."""
    good = "open(FILE, 'w').write('{}')"
    memory = "raise MemoryError('CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has')"
    killed = "import os; os.kill(os.getpid(), 9)"
    fake_pieces(monkeypatch, first=good, large=memory, flag="sys.exit('error: --x: no')", killed=killed, last=good)
    summary = gpu.bench_gpu(tiny(tmp_path))
    problems = {record.name: record.problem for record in summary["records"]}
    assert problems == {
        "fake-first": "",
        "fake-large": "does not fit the GPU's memory",
        "fake-flag": "--x: no",
        "fake-killed": "ended by SIGKILL",
        "fake-last": "",
    }
    text = (tmp_path / "gpu.md").read_text()
    assert "- fake-large: does not fit the GPU's memory\n" in text
    assert "fake-first" not in text
    assert "20.00 GiB" in (tmp_path / "logs" / "fake-large.log").read_text()
    assert gpu.bench_gpu(tiny(tmp_path))["measured_now"] == 3


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    """An engine's processes outlived their time limit, and held the GPU's memory from all that came after."""
    wait = "import signal; signal.pause()"
    done = alone.run([sys.executable, "-c", wait], tmp_path / "log", limit_s=0.1)
    assert done == alone.Done(problem="took longer than 0 s")
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {wait!r}]); print(flush=True); {wait}"
    process = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    alone.end(process)
    process.communicate(timeout=60)  # ends when nobody holds the other end of the pipe any more


def test_what_time_is_left_for_is_measured_and_the_rest_is_said(tmp_path, monkeypatch):
    fake_pieces(monkeypatch, only="open(FILE, 'w').write('{}')")
    summary = gpu.bench_gpu(tiny(tmp_path, minutes=0.01))
    assert "0.01 minutes were over; run the same command again" in summary["records"][0].problem
    assert gpu.bench_gpu(tiny(tmp_path))["records"][0].answer == {}


def test_without_a_gpu_the_command_says_so_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"--device cuda: torch \S+ cannot compute there"):
        gpu.bench_gpu(BenchGpuConfig(tmp_path))
    assert not (tmp_path / "gpu.md").exists()


def test_a_misspelt_section_is_said(tmp_path):
    with pytest.raises(UserError, match="--only: none of student-fp32-eager"):
        gpu.bench_gpu(tiny(tmp_path, "students"))


def test_the_page_says_what_the_records_say():
    """Figures of a page that nobody can recompute: units and ratios got lost between record and table."""

    def record(name: str, request: dict, answer: dict | None, problem: str = "") -> Record:
        return Record(name, request, MACHINE, 1.0, answer, problem)

    student = {
        "inferences_per_second": 200.0,
        "p50_ms": 5.0,
        "p99_ms": 7.04,
        "first_ms": 2500.0,
        "peak_memory_mb": 1.0,
        "peak_gpu_memory_mb": 640.4,
        "batches": {"1": {"inferences_per_second": 201.0}, "8": {"inferences_per_second": 900.0}},
    }
    batch = {
        "latency_p50_s": 0.2,
        "actions_per_s": 5.0,
        "speedup_over_one_by_one": 1.5,
        "peak_memory_gib": 15.25,
    }
    training = {
        "batch_size": 64,
        "trainable": 8_600_000,
        "samples_per_second": 512.0,
        "waiting_share": 0.25,
        "peak_memory_mb": 9.0,
        "peak_gpu_memory_mb": 12_000.0,
    }
    drawn = {"pictures_per_second": 3000.0, "steps_per_second": 95.0}
    devices = [
        {"index": 0, "kind": "NVIDIA", "problem": "", "renderer": "Abacus", "fast": drawn, "exact": drawn},
        {"index": 1, "kind": "other", "problem": "Cannot initialize"},
        {"index": "any", "kind": "software", "problem": "there is none"},
    ]
    answers = {"vllm": {"median": 50.0}, "pipeline": {"median": 45.0}}
    graphs = {"dtype": "bf16", "mode": "graphs", "image_size": 224, "calls": 300}
    large = {"student": "vlaad_158m", "image_size": 0, "preset_size": "full", "precision": "bf16"}
    openvla = {"parameters": 7_541_237_184, "batches": {"1": batch, "32": None}}
    answered = {"measured_questions": 768, "answers_per_second": answers, "ratio_to_vllm": 0.9}
    records = [
        record("student-bf16-graphs", graphs, student),
        record("student-bf16-compiled", {"dtype": "bf16", "mode": "compiled"}, None, "took longer than 150 s"),
        record("teacher-openvla", {"dtype": "bf16", "repeats": 10}, openvla),
        record("training-158m-bf16", large, training),
        record("rendering-egl", {}, {"devices": devices, "pixels": 128, "cameras": 2}),
        record("annotation-vllm", {"size": "full", "data": None}, answered),
    ]
    text = page.page("full", MACHINE, records, ["training-small-bf16"])
    for line in (
        "# Measured on NVIDIA Abacus",
        "| GPU | NVIDIA Abacus, 24 GiB, compute capability 8.9 |",
        "| driver; CUDA of torch | 580.1; 13.0 |",
        "| versions | Python 3.11.2, torch 2.13.0 |",
        "| bf16 | graphs | **200.0** | 1000 | 5.0 | 7.0 | 2.5 | 640 |",
        "| bf16 | graphs | 201 | 900 |",
        "| 1 | 200 | **5.00** | 1.50 | 15.25 |",
        "| bf16 | graphs | **40.0** | 200 |",
        "| vlaad_158m, 224 px | bf16 | 64 | **512** | 25 % | 8.6 M | 12000 |",
        "| 0 | Abacus | 3000 | 3000 | 95.0 | 95.0 |",
        "| through Ray Data | **45.0** | 0.90 |",
        "- student-bf16-compiled: took longer than 150 s",
        "- teacher-openvla: batch 32 does not fit the GPU's memory",
        "- rendering-egl: EGL device 1 (other): Cannot initialize",
        "- rendering-egl: EGL device any (software): there is none",
        "- training-small-bf16: not asked for, or not its turn yet",
    ):
        assert f"\n{line}\n" in f"\n{text}\n", line
    assert "Paper: 3.29 in inferences" in text.replace("\n", " ")
    older = [Record(**{**vars(records[0]), "machine": {**MACHINE, "git_revision": "old"}})]
    assert "earlier revisions, as their records say: student-bf16-graphs." in page.page("full", MACHINE, older, [])


@pytest.mark.slow
def test_training_of_the_large_student_takes_the_steps_of_training(tmp_path):
    """A loop of its own would have measured something else: no adapters, say, or another objective."""
    for precision in ("bf16", "fp32"):
        kind, asked = request(tiny(tmp_path), f"training-158m-{precision}")
        answer = measure.KINDS[kind](**asked)
        assert answer["batch_size"] == 8
        assert answer["samples_per_second"] > 0
    setup = student_training.make_setup(student_training.TrainingRequest(**asked))
    assert setup.config.objective == "dual_path"
    trained = [name for name, each in setup.learner.named_parameters() if each.requires_grad]
    assert any("lora" in name for name in trained)
    assert not any("vision" in name and "lora" not in name and "from_vision" not in name for name in trained)


def test_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    kind, asked = request(tiny(tmp_path), "training-small-bf16")
    fitted = student_training.fit.fit

    def of_a_small_gpu(setup, *args):
        if setup.config.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fitted(setup, *args)

    monkeypatch.setattr(student_training.fit, "fit", of_a_small_gpu)
    assert measure.KINDS[kind](**asked)["batch_size"] == 2


def test_cuda_graphs_are_refused_without_cuda(tmp_path):
    directory = student_training.random_student("tiny", tmp_path)
    with pytest.raises(UserError, match="CUDA graphs need a GPU"):
        StudentPolicy.from_pretrained(directory, mode="graphs")


def test_the_rules_see_the_phases_of_the_synthetic_motion():
    """Without segments there are no questions to ask, and without pictures in them none is open."""
    for index in range(3):
        episode = motion.episode(index)
        phases = rules.nine_phases(episode)
        assert set(phases) == {"approaching", "grasping", "transporting", "placing"}
        pictures = [step for step, picture in enumerate(episode.images["agentview"]) if picture is not None]
        windows = kinds.plan(Scene(phases, phases, episode.proprio, pictures), VlmConfig())
        # run.annotation counts on so many an episode.
        assert sum(bool(window.frames) for window in windows) == 12
    assert not np.array_equal(motion.episode(0).proprio, motion.episode(1).proprio)


def test_the_full_vlm_has_the_published_number_of_parameters():
    """3,754,622,976 is what the model hub states for Qwen/Qwen2.5-VL-3B-Instruct (7,509,245,952 bytes in bf16)."""
    config = random_checkpoint.make_config(random_checkpoint.QWEN_3B, random_checkpoint.make_tokenizer())
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert sum(each.numel() for each in model.parameters()) == 3_754_622_976


@pytest.mark.parametrize(
    ("visible", "mine"),
    [(None, [0, 1, 2, 3]), ("1", [1, 2, 3]), ("0", [0, 2, 3]), ("5", [2, 3]), ("GPU-89", [0, 1, 2, 3])],
)
def test_gpus_of_others_are_left_alone(visible, mine):
    assert rendering.own_devices(["NVIDIA", "NVIDIA", "other", "software"], visible) == mine


def test_egl_devices_are_known_by_their_extensions():
    assert rendering.kind_of(["EGL_NV_device_cuda", "EGL_EXT_device_drm"]) == "NVIDIA"
    assert rendering.kind_of(["EGL_EXT_device_drm"]) == "other"
    assert "software" in rendering.device_kinds()


@pytest.mark.slow
def test_the_whole_command_at_tiny_sizes(tmp_path):
    """Compiling, rendering and vLLM too: minutes of it are starts."""
    summary = gpu.bench_gpu(tiny(tmp_path))
    assert {record.name: record.problem for record in summary["records"] if record.problem} == {}
    text = (tmp_path / "gpu.md").read_text()
    for title, _ in page.SECTIONS.values():
        assert f"\n## {title}\n" in text
    assert "llvmpipe" in text
    assert "Not measured" not in text


@pytest.mark.slow
def test_a_compiled_student_answers_as_an_eager_one(tmp_path):
    """Batches are filled up to the next size: what is added must not be in the answer."""
    directory = student_training.random_student("tiny", tmp_path)
    observations = random_observations(3, 32)
    expected = StudentPolicy.from_pretrained(directory).infer_batch(observations)
    given = StudentPolicy.from_pretrained(directory, mode="compiled").infer_batch(observations)
    assert len(given) == 3
    for one, other in zip(expected, given, strict=True):
        # Sums in another order; a gripper's command would differ by 2.
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
