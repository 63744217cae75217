"""The paper's claims put to the test: one config a study, and the budget that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vlaad_ray.configs.bounds import FILLED, Flat, above, at_least, below, between
from vlaad_ray.configs.common import TAXONOMIES, EnvConfig, FleetConfig, NoiseConfig, NoSettings
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.places import Location
from vlaad_ray.configs.teachers import ServingConfig

Gripper = Literal["steady", "raw"]


@dataclass(frozen=True)
class StudyBudget:
    """How much is collected, trained and evaluated. Defaults: some hours on two cores.

    Rerunning the same command continues; studies with the same --out share data, runs and evaluations.
    """

    out: Machine[Location] = Path("runs/studies")
    """Data, annotations, runs and evaluations of all studies, each in a directory named by what determines it."""
    results: Machine[Location | None] = None
    """Where NAME.md, NAME.json and NAME.png go; None: OUT/results."""
    minutes: Machine[Annotated[float | None, at_least(0)]] = None
    """Begin nothing new after this much; what was measured is written, the rest is listed as not run."""
    teacher: str = "scripted"
    """Which teacher acts: scripted, openvla or checkpoint (a student; both --checkpoint), or remote (--url)."""
    teacher_execute: Annotated[int, at_least(0)] = 0
    """Actions of a teacher's chunk executed before it is asked again; 0: as its authors do (openvla 1, remote 5), 2 of
    a student's."""
    tasks: str = "0-3"
    """Tasks of each suite, learned by one student."""
    init_states: str = "0-19"
    """Stored init states to learn from; 20-49 are kept for evaluation."""
    placements: Annotated[int, at_least(0)] = 10
    """Fresh random placements a task to learn from."""
    image_every: Annotated[int, at_least(1)] = 2
    """Render every n-th control step in collection."""
    eval_init_states: str = "20-39"
    """Held-out init states, the same for every policy."""
    seeds: str = "0-2"
    """Seeds of training, as 0-2 or 0,5."""
    student: str = "small"
    """Preset of the network."""
    network: Flat[Any] = None
    """The preset's own settings, as for jobs/train.py; None: its defaults."""
    student_pixels: Annotated[int, at_least(0)] = 0
    """Pixels the student sees, 0: the preset's; --image-size is that of the data."""
    validation_fraction: Annotated[float, below(1, low=0)] = 0.1
    """Share of each task's episodes that accuracy is measured on, at least one episode."""
    epochs: Annotated[int, at_least(1)] = 15
    batch_size: Annotated[int, at_least(1)] = 128
    """Over all processes of a training."""
    max_minutes: Annotated[float | None, above(0)] = None
    """Cap on each training; its results then depend on the machine."""
    workers: Machine[Annotated[int, at_least(0)]] = 0
    """Processes of each training; 0: one (distillation on CPUs: one for each CPU)."""
    concurrent: Machine[Annotated[int, at_least(0)]] = 0
    """Trainings at a time; 0: as many as the cluster's CPUs, or its GPUs with --gpus-per-worker, hold."""
    gpus_per_worker: Machine[Annotated[float, at_least(0)]] = 0.0
    noise: NoiseConfig = NoiseConfig(sigmas=(0.0, 0.1, 0.2, 0.3), burst_rate=0.02)
    """Noise on executed actions while collecting, so that the data covers recovery."""
    teacher_config: Flat[Any] = NoSettings()
    serving: Machine[Flat[ServingConfig]] = ServingConfig()
    env: Flat[Any] = EnvConfig()
    fleet: Machine[Flat[FleetConfig]] = FleetConfig()


@dataclass(frozen=True)
class StudyPhasesConfig:
    """Phase granularity: how evenly 3 to 13 phases cut episodes, and what they do for the student (Table 4)."""

    budget: Flat[StudyBudget] = StudyBudget()
    suites: Annotated[tuple[str, ...], FILLED] = ("libero_object", "libero_spatial", "libero_goal")
    """Suites whose frames are counted."""
    flip_rates: Annotated[tuple[float, ...], at_least(0), FILLED] = (0.0, 0.03)
    """Teachers whose frames are counted: the teacher with this share of its gripper targets flipped."""
    taxonomies: Annotated[tuple[int, ...], between(3, 13), FILLED] = TAXONOMIES
    train_suites: tuple[str, ...] = ("libero_object",)
    """Suites on which students are trained for each taxonomy and seed, from the teacher as it is."""


@dataclass(frozen=True)
class StudyNoiseConfig:
    """Noise: does semantics beat plain cloning when the teacher flips its gripper?"""

    budget: Flat[StudyBudget] = StudyBudget()
    suite: str = "libero_object"
    flip_rates: Annotated[tuple[float, ...], at_least(0), FILLED] = (0.0, 0.03, 0.10)
    """Share of the teacher's gripper targets that it takes back."""
    objectives: Annotated[tuple[str, ...], FILLED] = ("bc", "dual_path", "auxiliary", "both")
    grippers: Annotated[tuple[Gripper, ...], FILLED] = ("steady", "raw")
    """steady: students as they are deployed (--gripper-dwell, --gripper-memory of jobs/eval.py); raw: exactly as they
    say, their gripper's own flips included."""


@dataclass(frozen=True)
class StudyAlphaConfig:
    """Loss weight: alpha over each suite."""

    budget: Flat[StudyBudget] = StudyBudget(seeds="0")
    suites: Annotated[tuple[str, ...], FILLED] = ("libero_object", "libero_spatial", "libero_goal")
    alphas: Annotated[tuple[float, ...], at_least(0), FILLED] = (0.0, 0.3, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class StudyDistillationConfig:
    """Distillation: the student against its teacher on the same held-out states."""

    budget: Flat[StudyBudget] = StudyBudget(tasks="0-9", placements=60, epochs=25, max_minutes=60.0, seeds="0")
    suites: Annotated[tuple[str, ...], FILLED] = ("libero_object", "libero_spatial", "libero_goal")
    objectives: Annotated[tuple[str, ...], FILLED] = ("dual_path",)
    """Of the students' training: one for all suites, or one for each."""
    alpha: Annotated[float, at_least(0)] = 1.0
    """Weight of the path without description."""
    videos: Annotated[int, at_least(0)] = 2
    """Successes and failures of each student, this many each, to record as MP4."""


@dataclass(frozen=True)
class StudyFlopsConfig:
    """Budgets: success against FLOPs of students that run fewer layers than their teacher, arm by arm (ActDistill)."""

    budget: Flat[StudyBudget] = StudyBudget(student="mini_vla", tasks="0", placements=60, epochs=30, seeds="0")
    """--epochs are the teacher's, a mini_vla that clones --teacher."""
    suite: str = "libero_object"
    shares: Annotated[tuple[float, ...], above(0, up_to=1), FILLED] = (0.65, 0.5, 0.3, 0.16)
    """Budgets, as shares of the whole network's FLOPs. Those that no route meets are listed, not run."""
    arms: Annotated[tuple[int, ...], between(1, 10), FILLED] = (1, 3, 6, 8, 2, 4, 5, 7, 9, 10)
    """Which are run, and in what order (docs/actdistill.md)."""
    distil_epochs: Annotated[int, at_least(1)] = 10
    """Of every arm, whatever it trains."""
    probe_epochs: Annotated[int, at_least(1)] = 5
    timed: Annotated[int, at_least(1)] = 200
    """Answers whose time is taken, one by one, on one thread."""
