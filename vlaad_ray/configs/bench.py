"""One config a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vlaad_ray.configs.bounds import FILLED, Flat, above, at_least, between
from vlaad_ray.configs.common import EnvConfig, FleetConfig
from vlaad_ray.configs.places import Location
from vlaad_ray.configs.teachers import ServingConfig
from vlaad_ray.configs.vlm import VlmConfig


@dataclass(frozen=True)
class BenchRolloutConfig:
    """Control steps per second and core, against LIBERO's own loop in the same run."""

    out: Location = Path("runs/bench/rollout")
    """Where summary.json goes."""
    suites: Annotated[tuple[str, ...], FILLED] = ("libero_object", "libero_spatial", "libero_goal", "libero_10")
    """Suites to measure; the headline ratio is the worst of them."""
    task: Annotated[int, at_least(0)] = 0
    """Task of each suite."""
    steps: Annotated[int, at_least(1)] = 25
    """Control steps a block."""
    repeats: Annotated[int, at_least(1)] = 5
    """Blocks of each contestant, in turn; medians are reported."""


@dataclass(frozen=True)
class BenchAnnotateConfig:
    """Answers a second through Ray Data against vLLM alone, and questions a thousand frames."""

    data: Location
    """Dataset directory with real episodes."""
    out: Location = Path("runs/bench/annotate")
    """Where summary.json goes."""
    questions: Annotated[int, at_least(1)] = 640
    """At most this many, the same for both."""
    repeats: Annotated[int, at_least(1)] = 2
    """Measurements of each, in turn; medians are reported."""
    vlm: Flat[VlmConfig] = VlmConfig()
    """Without --model a Qwen2.5-VL with random weights is made."""


@dataclass(frozen=True)
class BenchAuditConfig:
    """What the audit of a VLM's answers sees when the answers are true but for a known share of lies."""

    data: Location
    """Dataset directory with real episodes."""
    out: Location = Path("runs/bench/audit")
    """Where summary.json and the annotations of each run go."""
    rates: Annotated[tuple[float, ...], between(0, 100), FILLED] = (0, 5, 15, 40)
    """Lies in per cent of the answers, one run each."""
    seed: Annotated[int, at_least(0)] = 0
    """Which answers are lies."""


@dataclass(frozen=True)
class BenchOpenVlaConfig:
    """OpenVLA's latency, throughput and memory, with random weights in its true shape, batched against one by one."""

    out: Location = Path("runs/bench/openvla")
    """Where summary.json goes."""
    size: Literal["full", "tiny"] = "full"
    """full: OpenVLA-7B. tiny: shows on any machine that the path works, not how fast."""
    batches: Annotated[tuple[int, ...], at_least(1), FILLED] = (1, 8, 32)
    """Environments that ask at once."""
    device: str = "cuda"
    """torch device; on cpu, take --size tiny unless there is much time."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    repeats: Annotated[int, at_least(1)] = 20
    """Timed calls of each batch size; medians are reported."""


@dataclass(frozen=True)
class BenchPolicyConfig:
    """Latency, throughput, memory and size of a student in every backend at hand, against OpenVLA-7B in the same run.

    Whole `infer`, batch 1: the cameras' pixels to actions. Each is measured in a process of its own.
    """

    policy: str = "vlaad_158m"
    """A preset (small, vlaad_158m), which gets random weights, or a checkpoint directory."""
    out: Location = Path("runs/bench/policy")
    """Where summary.json and the exported policies go."""
    data: Location | None = None
    """Dataset directory: frames to calibrate int8 on, and to compare all backends with torch. Without it int8 is
    calibrated on noise (as good for timing) and nothing is compared."""
    backends: tuple[str, ...] = ()
    """Of torch-fp32, torch-bf16, onnx-fp32, openvino-fp32, openvino-bf16, openvino-int8, cuda-fp32 and cuda-bf16; none:
    all that this machine can run."""
    image_size: Annotated[int, at_least(1)] = 224
    """Pixels of the observations; the student resizes them to its own size."""
    execute: Annotated[int, at_least(1)] = 5
    """Actions executed of each answer: control actions a second are inferences times this."""
    threads: Annotated[int, at_least(1)] = 2
    calls: Annotated[int, at_least(1)] = 200
    """Timed calls of each backend, after the first and five more."""
    frames: Annotated[int, at_least(1)] = 512
    """Frames on which backends are compared, with --data."""
    teacher: Literal["auto", "full", "blocks", "none"] = "auto"
    """OpenVLA-7B, random weights, bf16. full: all of it (16 GB). blocks: with 1 and 3 of its 32 language layers, and
    extrapolated. auto: full if the memory is there."""
    teacher_calls: Annotated[int, at_least(1)] = 3
    """Timed calls of each teacher's network."""


@dataclass(frozen=True)
class BenchGpuConfig:
    """Every figure that needs an NVIDIA GPU, section by section: student, OpenVLA-7B, training, rendering, annotation.

    Each measurement is a process of its own and is stored as soon as it is there: rerunning the same command goes on
    with what is missing.
    """

    out: Location = Path("runs/bench/gpu")
    """Where records/, logs/, summary.json, the page, and made/ (random weights, 9 GB) go; a folder on this machine."""
    page: Location | None = None
    """The page of results; none: OUT/gpu.md."""
    only: tuple[str, ...] = ()
    """Sections or measurements, by how their names begin, as student-bf16 or training; none: all."""
    data: Location | None = None
    """Dataset directory for annotation; none: synthetic episodes."""
    minutes: Annotated[float, above(0)] = 10.0
    """What would take longer is left for the next time."""
    size: Literal["full", "tiny"] = "full"
    """tiny: shows on any machine that the way works, not how fast."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: for --size tiny."""


@dataclass(frozen=True)
class BenchEvaluationConfig:
    """Episodes a minute of a student's evaluation: a copy in each simulator's process, against shared replicas."""

    policy: str = "small"
    """A preset (small, vlaad_158m), which gets random weights, or a checkpoint directory."""
    out: Location = Path("runs/bench/evaluation")
    """Where summary.json, a preset's random weights and the evaluations go."""
    suite: str = "libero_object"
    tasks: str = "0"
    init_states: str = "20-27"
    execute: Annotated[int, at_least(1)] = 2
    """Actions executed of each answer: the more, the less the student has to do."""
    budget: Annotated[int, at_least(1)] = 100
    """Control steps of an episode. Of random weights each takes them all."""
    repeats: Annotated[int, at_least(1)] = 2
    """Evaluations of each kind, in turn; medians are reported."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of the replicas."""
    serving: Flat[ServingConfig] = ServingConfig(replicas=1)
    env: Flat[EnvConfig] = EnvConfig()
    fleet: Flat[FleetConfig] = FleetConfig()


@dataclass(frozen=True)
class BenchTeacherConfig:
    """Throughput of batched teacher requests, against the ideal and against plainer batching in the same run.

    The teacher sleeps as long as a model would compute; clients sleep as long as a simulator would.
    """

    out: Location = Path("runs/bench/teacher")
    """Where summary.json goes."""
    environments: Annotated[tuple[int, ...], at_least(1), FILLED] = (2, 8, 32)
    """Numbers of environments to measure."""
    fixed_ms: Annotated[float, at_least(0)] = 100.0
    """What a batch costs whatever its size."""
    item_ms: Annotated[float, at_least(0)] = 8.0
    """What each observation in it adds."""
    think_ms: Annotated[float, at_least(0)] = 20.0
    """Mean time between an answer and the next request: a control step, with images drawn on a GPU."""
    think_spread: Annotated[float, between(0, 1)] = 0.1
    """Thinking times are uniform within this fraction of the mean."""
    image_size: Annotated[int, at_least(1)] = 224
    """A camera image of so many pixels goes with each request: what OpenVLA's environments send, prepared."""
    seconds: Annotated[float, above(0)] = 12.0
    """Measured time for each number of environments and each way of batching."""
    max_batch: Annotated[int, at_least(1)] = 32
