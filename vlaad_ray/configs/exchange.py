"""Datasets of others: out of ours into their formats, out of theirs into ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from vlaad_ray.configs.bounds import Flat, at_least, between
from vlaad_ray.configs.machine import Machine
from vlaad_ray.configs.places import Location


@dataclass(frozen=True)
class LeRobotLayout:
    """How a LeRobot dataset is written."""

    pictures: Literal["video", "image"] = "video"
    """video: H.264 in MP4, small and lossy. image: PNG in the Parquet files, exact and several times larger."""
    crf: Annotated[int, between(0, 51)] = 18
    """x264's constant rate factor: higher is smaller and worse."""
    episodes_per_file: Annotated[int, at_least(1)] = 50
    """Episodes in a data file and a video, and so in one piece of the parallel work."""
    executed: bool = False
    """Also write what the robot was told, noise included, as the feature executed_action."""
    language: bool = False
    """With --annotations, also write the column language_persistent (subtask, motion), which LeRobot has since 0.6:
    older releases refuse a dataset with it."""


@dataclass(frozen=True)
class ExportDatasetConfig:
    """Write a dataset in another project's format. Successful episodes alone, unless told otherwise.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    data: Machine[Location]
    """Dataset directory, as jobs/collect.py wrote it, with a picture at every step (--image-every 1)."""
    out: Machine[Location]
    """Directory of the new dataset (shared by all nodes on a cluster)."""
    annotations: Machine[Location | None] = None
    """Annotation directory, as jobs/annotate.py wrote it: phase, direction and description become features."""
    format: str = "lerobot"
    """lerobot: LeRobot dataset v3.0; or a plugin's."""
    layout: Flat[Any] = None
    """The format's own settings; None: its defaults."""
    failed: bool = False
    """Failed episodes, too, where the dataset has them."""


@dataclass(frozen=True)
class LeRobotReading:
    """How a LeRobot dataset is read."""

    state: str = "observation.state"
    """The feature that is proprioception, where there is one of this name."""
    phase: str = "annotation.phase"
    """The text feature that tells the phase, where there is one of this name."""


@dataclass(frozen=True)
class Hdf5Reading:
    """How demonstrations in HDF5 are read."""

    observed: Literal["auto", "before", "after"] = "auto"
    """Whether an observation was made before its action or after it. auto: after in LIBERO's files, before in others'.
    Of those after, an action gets the observation of the one before it, and the first action is dropped."""
    instruction: str = ""
    """What the demonstrations do, for files that do not say it."""
    replay: Annotated[int, at_least(0)] = 0
    """Also replay so many demonstrations of each file in the simulator, from their stored states, and say how many
    succeed. Needs --suite and LIBERO."""
    replay_least: Annotated[float, between(0, 1)] = 0.0
    """It is an error when a smaller share of those replayed succeeds."""


@dataclass(frozen=True)
class ImportDatasetConfig:
    """Make a dataset of ours out of another project's. What is imported can be annotated and trained on.

    Rerunning the same command completes what is missing and repeats nothing.
    """

    from_: Annotated[Machine[Location], tyro.conf.arg(name="from")]
    """Directory, file or URI of what is read."""
    out: Machine[Location]
    """Dataset directory (shared by all nodes on a cluster)."""
    source: str = "lerobot"
    """lerobot: LeRobot dataset v3. hdf5: LIBERO's or robomimic's demonstrations, a file or a directory of files. Or a
    plugin's."""
    reading: Flat[Any] = None
    """The source's own settings; None: its defaults."""
    suite: str = "none"
    """The suite whose tasks these are, known by their instructions. none: of no suite; nothing here needs one."""
    policy: str = "demonstrations"
    """Who acted, as episodes' names say it."""
    render: Literal["exact", "fast"] | None = None
    """How the simulator drew the pictures, if one did and it is known (docs/data.md)."""
    cameras: tuple[str, ...] = ()
    """New names of cameras, as image=agentview; the others keep theirs. Of LIBERO's usual names none need be given."""
    flip: Literal["auto", "none", "mirror", "upside_down", "turn"] = "auto"
    """What makes the pictures upright: nothing, left and right changed, top and bottom changed, or both. auto: as the
    source says, or is known to be."""
    gripper: Annotated[int | None, at_least(-1)] = None
    """Which number of an action is the gripper, where that is not known. -1: there is none."""
    gripper_means: Literal["auto", "plus_closes", "minus_closes", "zero_closes"] = "auto"
    """What the gripper's number means: 1 closes and -1 opens (ours), the other way round, or 0 closes and 1 opens.
    auto: ours, after a look at the fingers where their places are known."""
    rate_hz: Annotated[float, at_least(0)] = 0
    """Control steps a second; 0: as the source says."""
    pictures: Literal["jpeg", "png"] = "jpeg"
    """jpeg: quality 95, as in collected data. png: exact, about three times as large."""
    rescale: bool = False
    """Bring actions outside [-1, 1] into it, by the source's least and largest; footers say what they were."""
