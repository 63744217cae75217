"""One frozen dataclass a stage: what a user may set, with defaults for a laptop. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
STEP_BUDGETS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps a policy gets, after settling: the field's protocol (OpenVLA, openpi)."""
EVAL_INIT_STATES = range(20, 50)
"""Stored init states kept for evaluation. Collection refuses them unless told otherwise."""
TAXONOMIES = (3, 5, 7, 9, 11, 13)


T = TypeVar("T")
Flat = Annotated[T, tyro.conf.arg(name="")]
"""A nested config whose flags carry no prefix."""


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do. Jobs print only that."""


def parse_range(text: str, flag: str = "range") -> tuple[int, ...]:
    """`0-9`, `0,3,7`, `0-4,8` -> sorted tuple of distinct integers; an empty text is an empty tuple."""
    numbers: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        low, dash, high = part.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()) or (dash and int(high) < int(low)):
            raise UserError(f"{flag}: {part!r} is not a range; write it as 0-9, 0,3,7 or 0-4,8")
        numbers.update(range(int(low), int(high or low) + 1))
    return tuple(sorted(numbers))


@dataclass(frozen=True)
class NoiseConfig:
    """Noise on the *executed* action only; the recorded target stays clean, so data covers recovery (DART)."""

    sigmas: tuple[float, ...] = (0.0,)
    """An episode draws one of these: standard deviation of white noise on each translation (half on rotations)."""
    burst_rate: float = 0.0
    """Chance a step that a burst starts: a constant random push over 4-10 steps."""
    burst_sigma: float = 0.5
    """Standard deviation of a burst's translation push (0.3 of it on rotations)."""


@dataclass(frozen=True)
class TeacherNoiseConfig:
    """What real teachers do, injected into what a teacher asks for: the *recorded* target is noisy, and executed."""

    flip_rate: float = 0.0
    """Expected share of steps whose gripper target is turned, to be taken back within the burst length."""
    flip_steps: int = 2
    """A burst of flips lasts 1 to this many steps. Above 3, jobs/audit.py needs a --longest to match."""
    jitter: float = 0.0
    """Standard deviation of white noise on each translation (half on rotations)."""
    stall_rate: float = 0.0
    """Expected share of steps on which the teacher asks for no motion though it meant to move."""
    stall_steps: int = 5
    """A stall lasts 1 to this many steps."""


@dataclass(frozen=True)
class EnvConfig:
    render: Literal["fast", "exact"] = "fast"
    """exact: pixel-identical to LIBERO's own images (published checkpoints need it). fast: several times quicker,
    no reflections or antialiasing; for students trained on data collected the same way."""
    image_size: int = 128
    """Height and width of both camera images, in pixels."""
    settle_steps: int = 10
    """No-op steps after a reset, before the policy acts (field protocol)."""


@dataclass(frozen=True)
class FleetConfig:
    """How parallel work is spread over Ray actors. Never changes what an episode contains."""

    actors: int = 0
    """Simulator processes; 0: one for each CPU that Ray sees."""
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    """Fraction of a GPU for each actor: rendering (EGL) or a policy on the GPU."""
    episode_timeout_s: float = 300.0
    """An episode slower than this counts as stuck: its simulator is replaced and the episode retried."""
    max_retries: int = 2
    """Retries an episode gets after a dead or stuck simulator, before it is given up as lost."""


@dataclass(frozen=True)
class TeacherConfig:
    """Where a teacher's weights are and how they are run. The scripted teacher needs none of this."""

    checkpoint: Path | None = None
    """openvla: directory with config.json, *.safetensors and dataset_statistics.json (readable on all nodes)."""
    unnorm_key: str | None = None
    """openvla: data set whose statistics un-normalise the actions; None: the suite's own."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """openvla: precision of weights and activations."""
    url: str = "ws://127.0.0.1:8000"
    """remote: address of a policy server that speaks openpi's protocol."""
    label: str = ""
    """remote: what to call the served policy in names of episodes; needed if the server does not tell."""
    connect_timeout_s: float = 60.0
    """remote: how long to keep trying to reach the server, at the start and after it went away."""
    infer_timeout_s: float = 120.0
    """remote: longest wait for one answer (a server's first one may compile for a minute)."""


@dataclass(frozen=True)
class ServingConfig:
    """Replicas of a teacher that answers batches (openvla). Never changes what an episode contains, beyond rounding."""

    replicas: int = 1
    """Copies of the teacher; environments are dealt out among them."""
    gpus_per_replica: float = 0.0
    """GPUs, or the fraction of one, for each copy; 0: it computes on CPUs."""
    cpus_per_replica: float = 1.0
    """CPUs set aside for each copy: its threads, when it computes on CPUs."""
    max_batch: int = 32
    """Most observations in one batch: lower it when a copy runs out of memory."""
    max_wait_ms: float = 250.0
    """Longest that an idle copy holds requests back for a larger batch. It usually waits for much less."""
    batch_timeout_s: float = 300.0
    """A batch slower than this counts as hung: the copy is replaced and its requests are sent again."""


@dataclass(frozen=True)
class CollectConfig:
    """Roll out a teacher in LIBERO and keep the successful episodes.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    out: Path
    """Dataset directory (shared by all nodes on a cluster)."""
    suite: str = "libero_object"
    """libero_object, libero_spatial, libero_goal, libero_10 or libero_90."""
    tasks: str = "0-9"
    """Tasks of the suite, as 0-9 or 0,3,7."""
    init_states: str = "0-19"
    """Stored init states to start from; 20-49 are kept for evaluation."""
    placements: int = 0
    """Fresh random placements a task, beside the stored init states."""
    teacher: str = "scripted"
    """Which teacher acts: scripted, openvla (--checkpoint) or remote (--url)."""
    execute: int = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5)."""
    seed: int = 0
    """Seed of noise and placements."""
    image_every: int = 1
    """Render the cameras every n-th control step; every step is stored, images only where rendered."""
    keep_failed: bool = False
    """Store failed episodes too (marked; training leaves them out)."""
    allow_eval_states: bool = False
    """Permit collecting from the init states kept for evaluation."""
    noise: NoiseConfig = NoiseConfig()
    teacher_config: Flat[TeacherConfig] = TeacherConfig()
    serving: Flat[ServingConfig] = ServingConfig()
    teacher_noise: TeacherNoiseConfig = TeacherNoiseConfig()
    env: Flat[EnvConfig] = EnvConfig()
    fleet: Flat[FleetConfig] = FleetConfig()


@dataclass(frozen=True)
class EvalConfig:
    """Run a policy closed loop on held-out init states and report its success with intervals.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    policy: str
    """A teacher's name (scripted, openvla, remote), or a checkpoint directory written by jobs/train.py."""
    out: Path
    """Where results go."""
    suite: str = "libero_object"
    """libero_object, libero_spatial, libero_goal, libero_10 or libero_90."""
    tasks: str = "0-9"
    """Tasks of the suite, as 0-9 or 0,3,7."""
    init_states: str = "20-39"
    """Stored init states, one episode each."""
    seed: int = 0
    """Only names the run: stored init states and a greedy policy leave nothing to chance."""
    execute: int = 0
    """Actions of a chunk executed before the policy is asked again; 0: 2 of a student's (docs/experiments.md), as its
    authors do for a teacher (openvla 1, remote 5)."""
    gripper_dwell: int = 10
    """Control steps that a student's gripper command stands once it has changed; 0: exactly as the student says.
    Fingers take about 10 (0.5 s) to close on a thing (docs/experiments.md)."""
    budget: int = 0
    """Steps until success must have been reached; 0: the field's own (280 object, 220 spatial, 300 goal, 520 10)."""
    videos: int = 2
    """Successes and failures, this many each, to record as MP4 afterwards."""
    compare_to: Path | None = None
    """Another evaluation's --out: paired comparison on the shared init states (exact McNemar test)."""
    teacher_config: Flat[TeacherConfig] = TeacherConfig()
    serving: Flat[ServingConfig] = ServingConfig()
    teacher_noise: TeacherNoiseConfig = TeacherNoiseConfig()
    """Injected into what the policy asks for: how a teacher fares with the noise that its data has."""
    env: Flat[EnvConfig] = EnvConfig()
    fleet: Flat[FleetConfig] = FleetConfig()


@dataclass(frozen=True)
class VlmConfig:
    """The VLM that annotates, what it is asked, and what is done with answers that the robot's motion contradicts."""

    model: str = ""
    """Directory of a checkpoint, or its name on the hub: any VLM that vLLM serves. Empty: the preset's Qwen2.5-VL."""
    revision: str = ""
    """Revision on the hub; a directory is identified by its content."""
    preset: Literal["auto", "cpu", "gpu-24gb", "gpu-80gb", "gpu-8x80gb"] = "auto"
    """Engine settings for a kind of machine; auto: gpu-24gb if the cluster has a GPU, else cpu."""
    replicas: int | None = None
    """Engines side by side. None, here and below: the preset's."""
    tensor_parallel: int | None = None
    """GPUs (or CPU processes) that share one engine."""
    batch_size: int | None = None
    """Rows that Ray Data hands to an engine at once; the engine batches continuously within and across them."""
    max_num_seqs: int | None = None
    """Answers that an engine generates at the same time."""
    dtype: str | None = None
    gpu_memory: float | None = None
    """Fraction of each GPU's memory for weights and KV cache."""
    max_model_len: int | None = None
    """Tokens of prompt (pictures included) and answer together."""
    server: str = ""
    """URL of an OpenAI-compatible server that already runs, as http://127.0.0.1:8000/v1, instead of an engine of ours;
    then --model is the name that the server knows. Its key is read from the environment variable OPENAI_API_KEY."""
    server_concurrency: int = 16
    """Requests that are open at the server at the same time."""
    every: int = 0
    """Ask for a description every n-th frame; 0: once a segment; 1: every frame, as the paper does."""
    moving: bool = False
    """Ask for element and direction of every segment in which the hand moves, not only of operating ones."""
    frame: Literal["viewer", "base"] = "viewer"
    """Whose left and right the VLM is asked for: the picture's, or the robot's. Stored in the robot's either way."""
    picture_pixels: int = 224
    """Pictures smaller than this are enlarged before they are shown."""
    max_tokens: int = 96
    """Longest answer."""
    temperature: float = 0.0
    """Of the first try; a retry raises it by 0.4, since the same question would get the same malformed answer."""
    max_retries: int = 2
    """Times a malformed or failed answer is asked for again before the frames keep their rule label, flagged."""
    on_contradiction: Literal["replace", "drop", "keep"] = "replace"
    """replace: the rule label takes the place of a contradicted one. drop: no description for these frames.
    keep: the VLM's words stay. Frames are flagged each time."""
    decisions: Path | None = None
    """JSON exported from the contact sheet: a person's accepted and rejected answers, which overrule the audit."""
    sheet: int = 40
    """Answers on the contact sheet: this many of the worst contradictions, and as many drawn at random from all.
    0: no sheet."""


@dataclass(frozen=True)
class AnnotateConfig:
    """Say for every frame of a dataset what is going on: phase, direction of motion, a short description.

    Rerunning the same command annotates what is missing and repeats nothing. The dataset itself is never written to.
    """

    data: Path
    """Dataset directory, as jobs/collect.py wrote it."""
    out: Path
    """Annotation directory (shared by all nodes on a cluster)."""
    annotator: Literal["rules", "vlm"] = "rules"
    """rules: on proprioception. vlm: a VLM within the rules' phases, audited against the robot's own motion."""
    phases: Literal[3, 5, 7, 9, 11, 13] = 9
    """Number of phases in the taxonomy; 9 is the paper's choice."""
    vlm: Flat[VlmConfig] = VlmConfig()


@dataclass(frozen=True)
class TrainConfig:
    """Train a student on successful episodes, with their annotations (dual_path) or without (bc).

    Rerunning the same command continues an interrupted run; after a finished one it only shows its summary.
    """

    data: Path
    """Dataset directory, as jobs/collect.py wrote it."""
    out: Path
    """Run directory: metrics.jsonl, summary.json, config.json and checkpoint/ (shared by all nodes on a cluster)."""
    annotations: Path | None = None
    """Annotation directory, as jobs/annotate.py wrote it. bc needs none."""
    student: Literal["small"] = "small"
    """Preset of the network."""
    objective: Literal["dual_path", "bc"] = "dual_path"
    """dual_path: L_full + alpha * L_img. bc: images and instruction alone."""
    alpha: float = 1.0
    """Weight of the path without description."""
    chunk: int = 5
    """K, actions the student answers with."""
    image_size: int = 96
    """Pixels the student sees, a multiple of 16; stored images are resized."""
    proprio: bool = True
    """Let the student see proprioception."""
    epochs: int = 20
    batch_size: int = 128
    """Frames a step, over all workers together."""
    lr: float = 1e-3
    """Peak learning rate: short warm-up, then cosine to nearly zero."""
    weight_decay: float = 1e-2
    target_sigma: float = 1.5
    """Gaussian smoothing of the target bins, in bins; 0: plain cross-entropy."""
    proprio_noise: float = 0.02
    """Noise on proprioception in training, in standard deviations of the data."""
    validation_fraction: float = 0.1
    """Share of each task's episodes held out, chosen by episode name."""
    max_minutes: float | None = None
    """Stop after this much training (loading not counted); the learning rate falls to its end within it."""
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 was 1.8 times as fast as fp32 on CPUs with AVX512-BF16."""
    workers: int = 0
    """Data-parallel training processes; 0: one with a GPU, else one for each CPU (threads of one process wait for each
    other: as soon as anything else runs, two threads are slower than one, two processes are not)."""
    cpus_per_worker: int = 0
    """Threads of a worker; 0: the cluster's CPUs shared equally."""
    gpus_per_worker: float = 0.0
    checkpoint_every: int = 1
    """Epochs between checkpoints to resume from."""


@dataclass(frozen=True)
class PipelineConfig:
    """Collect, annotate, train, evaluate teacher and student, report. The defaults are the demo: one task, one laptop.

    Rerunning the same command continues where it stopped.
    """

    out: Path
    """Run directory: data/, annotations/, train/, eval_teacher/, eval_student/, summary.json, report.html."""
    suite: str = "libero_object"
    tasks: str = "0"
    """Tasks of the suite, as 0-9 or 0,3,7: one student learns them all."""
    init_states: str = "0-19"
    """Stored init states to learn from; 20-49 are kept for evaluation."""
    placements: int = 80
    """Fresh random placements a task to learn from, beside the stored init states."""
    eval_init_states: str = "20-49"
    """Held-out init states for teacher and student."""
    teacher: str = "scripted"
    """Which teacher acts: scripted, openvla (--checkpoint) or remote (--url)."""
    teacher_execute: int = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5)."""
    seed: int = 0
    image_every: int = 2
    """Render every n-th control step in collection."""
    phases: Literal[3, 5, 7, 9, 11, 13] = 9
    objective: Literal["dual_path", "bc"] = "dual_path"
    alpha: float = 1.0
    """Weight of the path without description."""
    epochs: int = 45
    max_minutes: float | None = 14.0
    """Cap on training time, for slow machines: the learning rate falls to its end within it. None: no cap."""
    workers: int = 0
    """Training processes; 0: one with a GPU, else one for each CPU."""
    gpus_per_worker: float = 0.0
    """GPUs of each training process."""
    execute: int = 2
    """How many of the student's K actions are executed before it is asked again."""
    noise: NoiseConfig = NoiseConfig(sigmas=(0.0, 0.1, 0.2, 0.3), burst_rate=0.02)
    """Noise on executed actions while collecting, so that the data covers recovery."""
    teacher_config: Flat[TeacherConfig] = TeacherConfig()
    serving: Flat[ServingConfig] = ServingConfig()
    teacher_noise: TeacherNoiseConfig = TeacherNoiseConfig()
    """Noise in what the teacher asks for, in collection and in its own evaluation."""
    env: Flat[EnvConfig] = EnvConfig()
    fleet: Flat[FleetConfig] = FleetConfig()


@dataclass(frozen=True)
class AuditConfig:
    """Measure the noise in what a teacher asks for: in a dataset, or live. The dataset itself is never written to."""

    out: Path
    """Where summary.json, episodes.json and noise.html go; with --teacher, its episodes too (data/)."""
    data: Path | None = None
    """Dataset directory, as jobs/collect.py wrote it."""
    teacher: str | None = None
    """Or a teacher to run: scripted, openvla (--checkpoint) or remote (--url)."""
    longest: int = 3
    """A gripper command of up to this many steps that is then taken back counts as self-revoking."""
    repair: Path | None = None
    """Also write a copy of the dataset here, with the gripper targets that were meant."""
    suite: str = "libero_object"
    """Of a live teacher, as all below."""
    tasks: str = "0-9"
    episodes: int = 50
    """Spread evenly over the tasks (rounded up): stored init states 0-19, then fresh placements."""
    seed: int = 0
    execute: int = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5)."""
    image_every: int = 1000
    """Render every n-th control step: an audit needs no pictures, a look at them may help."""
    teacher_config: Flat[TeacherConfig] = TeacherConfig()
    serving: Flat[ServingConfig] = ServingConfig()
    teacher_noise: TeacherNoiseConfig = TeacherNoiseConfig()
    env: Flat[EnvConfig] = EnvConfig()
    fleet: Flat[FleetConfig] = FleetConfig()


@dataclass(frozen=True)
class BenchRolloutConfig:
    """Control steps per second and core, against LIBERO's own loop in the same run."""

    out: Path = Path("runs/bench/rollout")
    """Where summary.json goes."""
    suites: tuple[str, ...] = ("libero_object", "libero_spatial", "libero_goal", "libero_10")
    """Suites to measure; the headline ratio is the worst of them."""
    task: int = 0
    """Task of each suite."""
    steps: int = 25
    """Control steps a block."""
    repeats: int = 5
    """Blocks of each contestant, in turn; medians are reported."""


@dataclass(frozen=True)
class BenchAnnotateConfig:
    """Answers a second through Ray Data against vLLM alone, and questions a thousand frames."""

    data: Path
    """Dataset directory with real episodes."""
    out: Path = Path("runs/bench/annotate")
    """Where summary.json goes."""
    questions: int = 400
    """At most this many, the same for both."""
    repeats: int = 2
    """Measurements of each, in turn; medians are reported."""
    vlm: Flat[VlmConfig] = VlmConfig()
    """Without --model a Qwen2.5-VL with random weights is made."""


@dataclass(frozen=True)
class BenchAuditConfig:
    """What the audit of a VLM's answers sees when the answers are true but for a known share of lies."""

    data: Path
    """Dataset directory with real episodes."""
    out: Path = Path("runs/bench/audit")
    """Where summary.json and the annotations of each run go."""
    rates: tuple[float, ...] = (0, 5, 15, 40)
    """Lies in per cent of the answers, one run each."""
    seed: int = 0
    """Which answers are lies."""


@dataclass(frozen=True)
class BenchOpenVlaConfig:
    """OpenVLA's latency, throughput and memory, with random weights in its true shape, batched against one by one."""

    out: Path = Path("runs/bench/openvla")
    """Where summary.json goes."""
    size: Literal["full", "tiny"] = "full"
    """full: OpenVLA-7B. tiny: shows on any machine that the path works, not how fast."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Environments that ask at once."""
    device: str = "cuda"
    dtype: Literal["bf16", "fp32"] = "bf16"
    repeats: int = 20
    """Timed calls of each batch size; medians are reported."""


@dataclass(frozen=True)
class BenchTeacherConfig:
    """Throughput of batched teacher requests, against the ideal and against plainer batching in the same run.

    The teacher sleeps as long as a model would compute; clients sleep as long as a simulator would.
    """

    out: Path = Path("runs/bench/teacher")
    """Where summary.json goes."""
    environments: tuple[int, ...] = (2, 8, 32)
    """Numbers of environments to measure."""
    fixed_ms: float = 100.0
    """What a batch costs whatever its size."""
    item_ms: float = 8.0
    """What each observation in it adds."""
    think_ms: float = 20.0
    """Mean time between an answer and the next request: a control step, with images drawn on a GPU."""
    think_spread: float = 0.1
    """Thinking times are uniform within this fraction of the mean."""
    image_size: int = 256
    """Two camera images of so many pixels go with each request, as to a real teacher."""
    seconds: float = 12.0
    """Measured time for each number of environments and each way of batching."""
    max_batch: int = 32


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained student over openpi's websocket protocol. No Ray, no LIBERO."""

    checkpoint: Path
    """Checkpoint directory, as jobs/train.py wrote it."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: keep it private."""
    port: int = 8000
    """0: any free one."""
    device: str = "cpu"
    """torch device."""
    dtype: Literal["bf16", "fp32"] = "fp32"


def teacher_noise_content(config: TeacherNoiseConfig) -> dict[str, TeacherNoiseConfig]:
    """What teacher noise adds to the settings that `config_hash` is over: nothing without noise, so names stay."""
    return {} if config == TeacherNoiseConfig() else {"teacher_noise": config}


def config_hash(**settings: object) -> str:
    """8 hex digits over settings that determine content. Values must be JSON-able or dataclasses."""
    text = json.dumps(settings, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
