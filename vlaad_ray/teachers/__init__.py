"""Teachers by name. A new teacher is one file (or folder) here and one line in TEACHERS.

A teacher lives in every simulator's process (LocalPolicy) or in replicas that answer batches (SharedPolicy). Either is
described before anything starts: wrong paths and addresses show at once. Heavy imports wait until a teacher is chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vlaad_ray import plugins
from vlaad_ray.configs import (
    CheckpointConfig,
    Location,
    NoSettings,
    OpenVlaConfig,
    RemoteConfig,
    UserError,
    settings_of,
    what_a_checkpoint_is,
)
from vlaad_ray.envs import Env, find_suite
from vlaad_ray.files import Part, children, local_copy, sha256
from vlaad_ray.types import LIBERO, BatchPolicy, LocalPolicy, Policy, SharedPolicy, Trained

SCRIPTED_LAW = 3
"""Raise it when the scripted teacher would act otherwise in the same state, so that its episodes get other names.

2: a wide funnel over rims, and less noise at fixtures. 3: pans by their handle, shelves through their front, doors
opened, tall things laid into drawers, what is to be shut and stays empty first, a narrow funnel over mugs again.
"""
UNCHANGED_SINCE = {"libero_object": 1, "libero_spatial": 2, "libero_goal": 2}
"""Suites that have nothing of what a later law changed, and their law: their episodes keep their names."""
SAMPLE = 2**20
"""Bytes of each weights file that its fingerprint is taken from, at three places."""


@dataclass(frozen=True)
class Teacher:
    config: type[Any]
    """Dataclass of the teacher's own flags, each with a default."""
    describe: Callable[[Any, str, int], LocalPolicy | SharedPolicy]
    """What it is, from its config, the suite's name and --execute (0: its own default). Raises UserError."""


def describe_scripted(config: NoSettings, suite: str, execute: int) -> LocalPolicy:
    """The privileged expert. It acts one action at a time, whatever `execute` says."""
    check_arm("scripted", suite)
    law = UNCHANGED_SINCE.get(suite, SCRIPTED_LAW)
    settings = {} if law == 1 else {"law": law}
    return LocalPolicy("scripted", _make_scripted, settings=settings, plans=True)


def _make_scripted(env: Env) -> Policy:
    from vlaad_ray.envs.libero import LiberoEnv
    from vlaad_ray.teachers.scripted.expert import ScriptedTeacher

    if not isinstance(env, LiberoEnv):
        raise UserError("the scripted teacher reads LIBERO's simulator; choose a teacher of this suite's own")
    return ScriptedTeacher(env)


def describe_openvla(config: OpenVlaConfig, suite: str, execute: int) -> SharedPolicy:
    """An OpenVLA checkpoint, one action a query. Its published checkpoints know exact images of 256 pixels only."""
    if config.checkpoint is None:
        raise UserError("--teacher openvla needs --checkpoint DIR, an OpenVLA checkpoint as on the Hugging Face hub")
    if not config.checkpoint.is_dir():
        raise UserError(f"--checkpoint: {config.checkpoint} is not there; {what_a_checkpoint_is(config.checkpoint)}")
    if execute > 1:
        raise UserError(f"--execute {execute}: openvla answers with one action")
    check_arm("openvla", suite)
    from vlaad_ray.models.openvla.checkpoint import read_checkpoint
    from vlaad_ray.models.openvla.preprocess import prepare

    trained_on = find_suite(suite).variant_of or suite  # whose statistics un-normalise its actions
    checkpoint = config.checkpoint.resolve()
    with local_copy(checkpoint, without=".safetensors") as described:
        image_size = read_checkpoint(described).config.image_size
    return SharedPolicy(
        name=f"openvla-{fingerprint(checkpoint)}",
        load=functools.partial(_load_openvla, checkpoint, trained_on, config.unnorm_key, config.dtype),
        execute=1,
        prepare=functools.partial(prepare, size=image_size),
        settings={"execute": 1, "unnorm_key": config.unnorm_key, "dtype": config.dtype},
        trained=Trained("exact", 256),
    )


def _load_openvla(
    checkpoint: Location, suite: str, unnorm_key: str | None, dtype: Literal["bf16", "fp32"], device: str
) -> BatchPolicy:
    from vlaad_ray.teachers.openvla import load_openvla

    with local_copy(checkpoint) as directory:
        return load_openvla(directory, suite, unnorm_key, device, dtype)


def describe_remote(config: RemoteConfig, suite: str, execute: int) -> LocalPolicy:
    """Whatever a server of openpi's protocol serves; each simulator holds a connection."""
    from vlaad_ray.teachers.remote import remote_teacher

    return remote_teacher(config, find_suite(suite).embodiment, execute)


def describe_checkpoint(config: CheckpointConfig, suite: str, execute: int) -> LocalPolicy | SharedPolicy:
    """A student of ours; it acts as in evaluation, 2 actions of a chunk unless told otherwise."""
    from vlaad_ray.teachers.checkpoint import checkpoint_teacher

    return checkpoint_teacher(config, find_suite(suite).embodiment, execute)


TEACHERS: dict[str, Teacher] = {
    "scripted": Teacher(NoSettings, describe_scripted),
    "openvla": Teacher(OpenVlaConfig, describe_openvla),
    "remote": Teacher(RemoteConfig, describe_remote),
    "checkpoint": Teacher(CheckpointConfig, describe_checkpoint),
}


def find_teacher(name: str, config: Any, suite: str, execute: int) -> LocalPolicy | SharedPolicy:
    """The teacher called `name`. Raises UserError for an unknown one, or what it says of its config."""
    teacher = plugins.lookup("teacher", TEACHERS, name)
    return teacher.describe(settings_of(f"teacher {name}", teacher.config, config), suite, execute)


def check_arm(teacher: str, suite: str) -> None:
    """Raises UserError unless the suite's robot is an arm as LIBERO's, with its cameras."""
    if find_suite(suite).embodiment != LIBERO:
        raise UserError(f"the teacher {teacher} knows LIBERO's arm and cameras only, not those of {suite}")


def fingerprint(checkpoint: Location) -> str:
    """8 hex digits that tell a checkpoint directory from others, fine-tunes of the same architecture included.

    Over all its JSON files, and size and samples of its weights: reading 15 GB in full would take a minute.
    """
    weights = children(checkpoint, ".safetensors")
    if not weights:
        raise UserError(f"--checkpoint: {checkpoint} holds no *.safetensors; give the directory of a checkpoint")
    pieces: list[bytes | Location | Part] = []
    for path in children(checkpoint, ".json"):
        pieces += [path.name.encode(), path]
    for path in weights:
        size = path.stat().st_size
        pieces.append(f"{path.name} {size}".encode())
        pieces += [Part(path, start, SAMPLE) for start in (0, size // 2, max(0, size - SAMPLE))]
    return sha256(*pieces)[:8]
