"""One config a stage, in the order of the pipeline, and the pipeline's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vlaad_ray.configs.bounds import FILLED, NO_PREFIX, Elsewhere, Flat, above, at_least, below
from vlaad_ray.configs.common import (
    WAIT_FOR_NODES_S,
    ActuationConfig,
    DaggerConfig,
    EnvConfig,
    FleetConfig,
    NoiseConfig,
    NoSettings,
    TeacherNoiseConfig,
)
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.names import Later, Newer
from vlaad_ray.configs.places import Location
from vlaad_ray.configs.teachers import ServingConfig
from vlaad_ray.configs.vlm import VlmConfig


@dataclass(frozen=True)
class CollectConfig:
    """Roll out a teacher and keep the successful episodes.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    out: Machine[Location]
    """Dataset directory (shared by all nodes on a cluster)."""
    suite: str = "libero_object"
    """libero_object, libero_spatial, libero_goal, libero_10, libero_90, a variant of these as libero_goal_swap, or a
    plugin's."""
    tasks: str = "0-9"
    """Tasks of the suite, as 0-9 or 0,3,7."""
    init_states: str = "0-19"
    """Stored init states to start from; 20-49 are kept for evaluation."""
    placements: Annotated[int, at_least(0)] = 0
    """Fresh random placements a task, beside the stored init states."""
    keep: Newer[Annotated[int, at_least(0)]] = 0
    """Episodes to keep of each task: further placements are tried until there are so many; 0: what the starts give."""
    tries: Newer[Annotated[int, at_least(1)]] = 3
    """With --keep, a task is given up after this many starts for each episode to keep."""
    need: Newer[Location | None] = None
    """With --keep, an evaluation's --out: tasks get episodes by how often they failed there, --keep on average."""
    budget: Annotated[Newer[int], at_least(0)] = 0
    """Steps until success must have been reached; 0: the field's own (280 object, 220 spatial, 300 goal, 520 10)."""
    teacher: str = "scripted"
    """Which teacher acts: scripted, openvla or checkpoint (a student; both --checkpoint), or remote (--url)."""
    execute: Annotated[int, at_least(0)] = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5), 2 of
    a student's."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of noise and placements."""
    image_every: Annotated[int, at_least(1)] = 1
    """Render the cameras every n-th control step; every step is stored, images only where rendered."""
    keep_failed: bool = False
    """Store failed episodes too (marked; training leaves them out)."""
    allow_eval_states: bool = False
    """Permit collecting from the init states kept for evaluation."""
    dagger: Newer[Flat[DaggerConfig]] = DaggerConfig()
    noise: NoiseConfig = NoiseConfig()
    teacher_config: Flat[Any] = NoSettings()
    serving: Machine[Flat[ServingConfig]] = ServingConfig()
    teacher_noise: Later[TeacherNoiseConfig] = TeacherNoiseConfig()
    env: Flat[Any] = EnvConfig()
    fleet: Machine[Flat[FleetConfig]] = FleetConfig()


@dataclass(frozen=True)
class AnnotateConfig:
    """Say for every frame of a dataset what is going on: phase, direction of motion, a short description.

    Rerunning the same command annotates what is missing and repeats nothing. The dataset itself is never written to.
    """

    data: Machine[Location]
    """Dataset directory, as jobs/collect.py wrote it."""
    out: Machine[Location]
    """Annotation directory (shared by all nodes on a cluster)."""
    annotator: Literal["rules", "vlm"] = "rules"
    """rules: on proprioception. vlm: a VLM within the rules' phases, audited against the robot's own motion."""
    phases: Literal[3, 5, 7, 9, 11, 13] = 9
    """Number of phases in the taxonomy; 9 is the paper's choice."""
    vlm: Flat[VlmConfig] = VlmConfig()


@dataclass(frozen=True)
class TrainConfig:
    """Train a student on successful episodes, with their annotations or without (bc).

    Rerunning the same command continues an interrupted run; after a finished one it only shows its summary.
    --config FILE takes settings from a sweep's best.json or another run's config.json; flags beside it win.
    """

    data: Machine[Location]
    """Dataset directory, as jobs/collect.py wrote it."""
    out: Machine[Location]
    """Run directory: metrics.jsonl, summary.json, config.json and checkpoint/ (shared by all nodes on a cluster)."""
    annotations: Machine[Location | None] = None
    """Annotation directory, as jobs/annotate.py wrote it. bc needs none."""
    more_data: Machine[tuple[Location, ...]] = ()
    """Further datasets to train on together with the first, as rounds of DAgger are."""
    more_annotations: Machine[tuple[Location, ...]] = ()
    """Their annotation directories, in the same order."""
    start_from: Machine[Location | None] = None
    """Checkpoint of a student of the same kind, whose weights training starts from; none: from random weights, or those
    of the preset's backbone."""
    student: str = "small"
    """Preset of the network (docs/students.md): small from scratch on CPU, mini_vla as OpenVLA is made,
    vlaad_158m from CLIP ViT-B/16 with LoRA, or a plugin's. Some have flags of their own: --student mini_vla --help."""
    network: Flat[Any] = None
    """The preset's own settings; None: its defaults."""
    objective: str = "dual_path"
    """dual_path: L_full + alpha * L_img. auxiliary: L_img + phase_weight * L_phase + direction_weight * L_direction.
    both: dual_path with the auxiliary terms. bc: L_img alone, from images and instruction. Each has its own flags, as
    --objective both --help says."""
    method: Flat[Any] = None
    """The objective's own settings; None: its defaults."""
    chunk: Annotated[int, at_least(1)] = 5
    """K, actions the student answers with."""
    image_size: Annotated[int, at_least(0)] = 0
    """Pixels the student sees; stored images are resized. 0: the preset's (small 96, mini_vla 84, vlaad_158m 224)."""
    cameras: tuple[str, ...] = ()
    """Cameras it sees through, of those in the data; none: the preset's (small all, vlaad_158m the first)."""
    proprio: bool = True
    """Let the student see proprioception."""
    epochs: Annotated[int, at_least(1)] = 20
    batch_size: Annotated[int, at_least(1)] = 128
    """Frames a step, over all workers together."""
    lr: Annotated[float, above(0)] = 1e-3
    """Peak learning rate: short warm-up, then cosine to nearly zero."""
    weight_decay: Annotated[float, at_least(0)] = 1e-2
    pose_weights: Newer[Annotated[tuple[float, float, float], at_least(0), FILLED]] = (1.0, 2.0, 1.0)
    """How much translations, rotations and gripper weigh in the loss. The paper doubles rotations."""
    chunk_weights: Newer[Annotated[tuple[float, ...], at_least(0)]] = ()
    """How much each of the K actions of a chunk weighs; none: all alike. Those that nobody executes may weigh less."""
    gripper_oversampling: Newer[Annotated[int, at_least(1)]] = 1
    """How often an epoch sees a frame in whose chunk the gripper's command changes."""
    target_sigma: Annotated[float, at_least(0)] = 1.5
    """Gaussian smoothing of the target bins, in bins; 0: plain cross-entropy."""
    proprio_noise: Annotated[float, at_least(0)] = 0.02
    """Noise on proprioception in training, in standard deviations of the data."""
    validation_fraction: Annotated[float, below(1, low=0)] = 0.1
    """Share of each task's episodes held out, chosen by episode name."""
    max_minutes: Annotated[float | None, above(0)] = None
    """Stop after this much training (loading not counted); the learning rate falls to its end within it."""
    seed: Annotated[int, at_least(0)] = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 was 1.8 times as fast as fp32 on CPUs with AVX512-BF16."""
    workers: Machine[Annotated[int, at_least(0)]] = 0
    """Data-parallel training processes; 0: one with a GPU, else one for each CPU (threads of one process wait for each
    other: as soon as anything else runs, two threads are slower than one, two processes are not)."""
    cpus_per_worker: Machine[Annotated[int, at_least(0)]] = 0
    """Threads of a worker; 0: an equal share of its node's CPUs."""
    gpus_per_worker: Machine[Annotated[float, at_least(0)]] = 0.0
    wait_for_nodes_s: Machine[Annotated[float, at_least(0)]] = WAIT_FOR_NODES_S
    """Longest wait for a node that the autoscaler may bring, when the workers fit none. Without one nothing waits."""
    checkpoint_every: Machine[Annotated[int, at_least(1)]] = 1
    """Epochs between checkpoints to resume from."""
    trackers: Machine[tuple[str, ...]] = ()
    """Where metrics go beside metrics.jsonl: tensorboard (OUT/tensorboard), or a plugin's."""
    frame_cache: Machine[Location | None] = None
    """Keep decoded pictures here for other runs on the same data (two cameras of 96 px: 55 kB a frame)."""


@dataclass(frozen=True)
class EvalConfig:
    """Run a policy closed loop on held-out init states and report its success with intervals.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    policy: str
    """A teacher's name (scripted, openvla, checkpoint, remote), a checkpoint directory written by jobs/train.py, or
    what jobs/export.py made of one."""
    out: Machine[Location]
    """Where results go."""
    suite: str = "libero_object"
    """libero_object, libero_spatial, libero_goal, libero_10, libero_90, a variant of these as libero_goal_swap, or a
    plugin's."""
    tasks: str = "0-9"
    """Tasks of the suite, as 0-9 or 0,3,7."""
    init_states: str = "20-39"
    """Stored init states, one episode each."""
    placements: Annotated[int, at_least(0)] = 0
    """Fresh random placements a task, beside the stored init states."""
    seed: Annotated[int, at_least(0)] = 0
    """Of the placements. With stored init states it only names the run: they and a greedy policy leave nothing to
    chance."""
    execute: Annotated[int, at_least(0)] = 0
    """Actions of a chunk executed before the policy is asked again; 0: 2 of a student's (docs/experiments.md), as its
    authors do for a teacher (openvla 1, remote 5)."""
    actuation: Flat[ActuationConfig] = ActuationConfig()
    ensemble: Annotated[Later[float | None], at_least(0)] = None
    """Average a student's overlapping chunks, predictions i = 0, 1, … (oldest first) weighing exp(-ENSEMBLE * i); ACT
    uses 0.01, and --execute 1. None: each chunk stands alone."""
    device: Newer[Literal["cpu", "cuda"]] = "cpu"
    """Where a student computes. cuda: in --replicas copies (at least one; --gpus-per-replica each, by default a whole
    GPU) that answer batches of all simulators. An export runs on CPUs."""
    precision: Newer[Literal["fp32", "bf16"]] = "fp32"
    """In which torch runs a student's checkpoint. An export has its own."""
    budget: Annotated[int, at_least(0)] = 0
    """Steps until success must have been reached; 0: the field's own (280 object, 220 spatial, 300 goal, 520 10)."""
    videos: Annotated[int, at_least(0)] = 2
    """Successes and failures, this many each, to record as MP4 afterwards."""
    compare_to: Location | None = None
    """Another evaluation's --out: paired comparison on the shared init states (exact McNemar test)."""
    teacher_config: Flat[Any] = NoSettings()
    serving: Machine[Flat[ServingConfig]] = ServingConfig()
    teacher_noise: Later[TeacherNoiseConfig] = TeacherNoiseConfig()
    """Injected into what the policy asks for: how a teacher fares with the noise that its data has."""
    perturb: Newer[str] = ""
    """Evaluate on --suite and on variants that perturb it, each in a folder of its own: all, or some, as lan,swap."""
    stock: Newer[bool] = False
    """In LIBERO's own environment, pixels and stepping unchanged, several times slower; the same as --render stock."""
    env: Flat[Any] = EnvConfig()
    fleet: Machine[Flat[FleetConfig]] = FleetConfig()


@dataclass(frozen=True)
class AuditConfig:
    """Measure the noise in what a teacher asks for: in a dataset, or live. The dataset itself is never written to."""

    out: Machine[Location]
    """Where summary.json, episodes.json and noise.html go; with --teacher, its episodes too (data/)."""
    data: Location | None = None
    """Dataset directory, as jobs/collect.py wrote it."""
    teacher: str | None = None
    """Or a teacher to run: scripted, openvla or checkpoint (a student; both --checkpoint), or remote (--url)."""
    longest: Annotated[int, at_least(1)] = 3
    """A gripper command of up to this many steps that is then taken back counts as self-revoking."""
    repair: Machine[Location | None] = None
    """Also write a copy of the dataset here, with the gripper targets that were meant."""
    suite: str = "libero_object"
    """Of a live teacher, as all below."""
    tasks: str = "0-9"
    episodes: Annotated[int, at_least(1)] = 50
    """Spread evenly over the tasks (rounded up): stored init states 0-19, then fresh placements."""
    seed: Annotated[int, at_least(0)] = 0
    execute: Annotated[int, at_least(0)] = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5), 2 of
    a student's."""
    image_every: Annotated[int, at_least(1)] = 1000
    """Render every n-th control step: an audit needs no pictures, a look at them may help."""
    teacher_config: Flat[Any] = NoSettings()
    serving: Machine[Flat[ServingConfig]] = ServingConfig()
    teacher_noise: TeacherNoiseConfig = TeacherNoiseConfig()
    env: Flat[Any] = EnvConfig()
    fleet: Machine[Flat[FleetConfig]] = FleetConfig()


@dataclass(frozen=True)
class PipelineConfig:
    """Collect, annotate, train, evaluate teacher and student, report. The defaults are the demo: one task, one laptop.

    Rerunning the same command continues where it stopped. What the stages have in common (suite, tasks, seed, teacher,
    environment, actors) is said once, among collection's settings.
    """

    out: Machine[Location]
    """Run directory: data/, annotations/, train/, eval_teacher/, eval_student/, summary.json, report.html."""
    rounds: Newer[Annotated[int, at_least(0)]] = 0
    """Rounds of DAgger after the first training, each in OUT/round1/ …: the student acts until the teacher takes over,
    and training goes on with what the teacher did."""
    round_keep: Newer[Annotated[int, at_least(1)]] = 20
    """Episodes that a round keeps of each task, on average: tasks get them by how often the student fails."""
    round_epochs: Newer[Annotated[int, at_least(1)]] = 5
    """Epochs of a round's training, over all data so far, from the last weights."""
    round_placements: Newer[Annotated[int, at_least(1)]] = 10
    """Fresh placements a task on which the student is looked at before a round; no test state is among them."""
    collect: Annotated[CollectConfig, NO_PREFIX, Elsewhere(("out", "dagger", "need"))] = CollectConfig(
        Path(), tasks="0", placements=80, image_every=2, noise=NoiseConfig(sigmas=(0.0, 0.1, 0.2, 0.3), burst_rate=0.02)
    )
    annotate: Annotated[AnnotateConfig, NO_PREFIX, Elsewhere(("data", "out", "annotator", "vlm"))] = AnnotateConfig(
        Path(), Path()
    )
    train: Annotated[
        TrainConfig,
        NO_PREFIX,
        Elsewhere(
            (
                "data",
                "out",
                "annotations",
                "more_data",
                "more_annotations",
                "start_from",
                "seed",
                "image_size",
                "wait_for_nodes_s",
            )
        ),
    ] = TrainConfig(Path(), Path(), epochs=45, max_minutes=14.0)
    evaluate: Annotated[
        EvalConfig,
        tyro.conf.arg(name="eval"),
        Elsewhere(
            (
                "policy",
                "out",
                "suite",
                "tasks",
                "seed",
                "teacher_config",
                "serving",
                "env",
                "fleet",
                "compare_to",
                "perturb",
            )
        ),
    ] = EvalConfig("", Path(), init_states="20-49", execute=2)
    """Of the student; the teacher acts on the same states, as it did in collection."""


@dataclass(frozen=True)
class ReportConfig:
    """Write RUN/report.html, whatever stages have run."""

    run: tyro.conf.Positional[Location]
    """Run directory, as jobs/pipeline.py wrote it."""
