"""Reading demonstrations in HDF5, as LIBERO and robomimic have them: data/demo_0/{actions, states, obs/…}."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vlaad_ray.configs import Hdf5Reading, ImportDatasetConfig, Location, UserError, location
from vlaad_ray.exchange.naming import in_order, renamed
from vlaad_ray.exchange.records import Demonstration, Item, Plan
from vlaad_ray.files import descendants, local_copy
from vlaad_ray.semantics.rotation import axis_angle
from vlaad_ray.types import CONTROL_HZ, LIBERO, Embodiment

ENDINGS = (".hdf5", ".h5")
EPISODES_A_TASK = 20
USUAL_CAMERAS = {
    "agentview_rgb": "agentview",
    "agentview_image": "agentview",
    "eye_in_hand_rgb": "wrist",
    "robot0_eye_in_hand_image": "wrist",
}
OF_LIBERO = ("ee_pos", "ee_ori", "gripper_states")
OF_ROBOMIMIC = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@dataclass(frozen=True)
class Contents:
    """What a file says of itself."""

    libero: bool
    """Written by LIBERO's own scripts."""
    instruction: str
    upside_down: bool
    rate_hz: float
    action_dim: int
    cameras: tuple[str, ...]
    """Keys of pictures among the observations."""
    felt: tuple[str, ...]
    """Keys that make proprioception; none: it has none that is known."""
    demos: tuple[tuple[str, str], ...]
    """(name, hash of its actions), by number."""


def plan(config: ImportDatasetConfig, reading: Hdf5Reading) -> Plan:
    """What the file or folder `config.from_` holds. Raises UserError for none, and for files of different kinds."""
    places = find_files(config.from_)
    contents = {}
    for place in places:
        with local_copy(place) as path:
            contents[place] = look(path, place, reading)
    first, *others = contents.items()
    for place, other in others:
        for name in ("libero", "upside_down", "rate_hz", "action_dim", "cameras", "felt"):
            if getattr(other, name) != getattr(first[1], name):
                raise UserError(f"{place} and {first[0]} differ in {name}; import them into datasets of their own")
    like = first[1]
    short = {key: key for key in like.cameras}
    cameras = renamed(config.cameras, {key: USUAL_CAMERAS.get(key, key) for key in like.cameras}, short)
    arm = bool(like.felt) and like.action_dim == LIBERO.action_dim
    gripper = config.gripper if config.gripper is not None else LIBERO.gripper if arm else None
    body = Embodiment(
        action_dim=like.action_dim,
        proprio_dim=LIBERO.proprio_dim if like.felt else 0,
        cameras=in_order(cameras.values()),
        rate_hz=config.rate_hz or like.rate_hz,
        gripper=None if gripper == -1 else gripper,
    )
    after = reading.observed == "after" or (reading.observed == "auto" and like.libero)
    instructions = sorted({each.instruction for each in contents.values()})
    items: list[tuple[Item, ...]] = []
    number = 0
    for place, each in contents.items():
        mine = []
        for name, fingerprint in each.demos:
            where = {"file": str(place), "demo": name}
            task = instructions.index(each.instruction)
            mine.append(Item(number, task, each.instruction, f"{fingerprint}-{'after' if after else 'before'}", where))
            number += 1
        items += [tuple(mine[at : at + EPISODES_A_TASK]) for at in range(0, len(mine), EPISODES_A_TASK)]
    notes = []
    if after:
        notes.append(
            "its observations come after their actions: each action got the one before it, the first is left out"
        )
    if not like.felt:
        notes.append(
            f"it has no proprioception that is known here: {', '.join(OF_LIBERO)} or {', '.join(OF_ROBOMIMIC)}"
        )
    known = "upside_down" if like.upside_down else "none"
    return Plan(
        body=body,
        items=tuple(items),
        read=functools.partial(demonstrations, cameras=cameras, felt=like.felt, after=after),
        flip=known if config.flip == "auto" else config.flip,
        gripper_means="plus_closes" if config.gripper_means == "auto" else config.gripper_means,
        notes=tuple(notes),
    )


def find_files(place: Location) -> list[Location]:
    if place.suffix in ENDINGS:
        if not place.exists():
            raise UserError(f"{place} does not exist")
        return [place]
    found = [path for ending in ENDINGS for path in descendants(place, ending)] if place.is_dir() else []
    if not found:
        raise UserError(f"{place} holds no demonstrations ({' or '.join(ENDINGS)}); give a file or a folder of files")
    return found


def opened(path: Path, said: object) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{said} cannot be read as HDF5 ({str(error).splitlines()[0]}); get it again") from None


def look(path: Path, said: object, reading: Hdf5Reading) -> Contents:
    """Raises UserError for a file of another layout."""
    with opened(path, said) as file:
        names = [name for name in file.get("data", {}) if name.startswith("demo_")]
        if not names:
            raise UserError(f"{said} has no data/demo_0; LIBERO's and robomimic's layout is read here")
        names.sort(key=lambda name: int(name.removeprefix("demo_")))
        facts, first = file["data"].attrs, file["data"][names[0]]
        for needed in ("actions", "obs"):
            if needed not in first:
                raise UserError(f"{said} has no data/{names[0]}/{needed}; a file with observations is needed")
        seen = first["obs"]
        pictures = tuple(sorted(key for key in seen if seen[key].ndim == 4 and seen[key].dtype == np.uint8))
        felt = next((keys for keys in (OF_LIBERO, OF_ROBOMIMIC) if all(key in seen for key in keys)), ())
        libero = "problem_info" in facts
        return Contents(
            libero=libero,
            instruction=reading.instruction or instruction(facts, said),
            # What robosuite draws is upside down unless it was told otherwise; robomimic turns it round itself.
            upside_down=facts.get("macros_image_convention", "opengl" if libero else "opencv") == "opengl",
            rate_hz=rate(facts),
            action_dim=first["actions"].shape[1],
            cameras=pictures,
            felt=felt,
            demos=tuple((name, fingerprint(file["data"][name])) for name in names),
        )


def instruction(facts: Mapping[str, Any], said: object) -> str:
    """LIBERO's, which some of its files have as a list of letters, in quotation marks."""
    if "problem_info" not in facts:
        raise UserError(f"{said} does not say what its demonstrations do; give --instruction TEXT")
    words = json.loads(facts["problem_info"])["language_instruction"]
    return "".join(words).strip().strip('"')


def rate(facts: Mapping[str, Any]) -> float:
    """Control steps a second; robosuite's usual ones where nothing is said."""
    settings = json.loads(facts.get("env_args", "{}"))
    return float(settings.get("env_kwargs", {}).get("control_freq", CONTROL_HZ))


def fingerprint(demo: h5py.Group) -> str:
    """Over its actions: no two demonstrations have the same, and pictures take long to read."""
    return hashlib.sha256(np.ascontiguousarray(demo["actions"][()]).tobytes()).hexdigest()


def demonstrations(
    items: Sequence[Item], cameras: Mapping[str, str], felt: Sequence[str], after: bool
) -> Iterator[Demonstration]:
    """Demonstrations of one file, one after the other."""
    if not items:
        return
    place = location(items[0].where["file"])
    with local_copy(place) as path, opened(path, place) as file:
        for item in items:
            demo = file["data"][item.where["demo"]]
            seen, actions = demo["obs"], np.asarray(demo["actions"][()], np.float32)
            steps = len(actions)
            for key in (*cameras, *felt):
                if len(seen[key]) != steps:
                    raise UserError(
                        f"{place}: {item.where['demo']}: {key} has {len(seen[key])} rows for {steps} actions"
                    )
            if steps <= after:
                raise UserError(f"{place}: {item.where['demo']} has too few steps ({steps})")
            shown = slice(0, steps - after)
            rewards = demo["rewards"][()] if "rewards" in demo else None
            yield Demonstration(
                proprio=proprioception(seen, felt, shown),
                actions=actions[int(after) :],
                images={name: list(seen[key][shown]) for key, name in cameras.items()},
                success=None if rewards is None else bool(np.max(rewards) >= 1),
            )


def proprioception(seen: h5py.Group, felt: Sequence[str], shown: slice) -> np.ndarray:
    """[T, 8] float32, as ours is. robosuite's quaternions are x, y, z, w."""
    if not felt:
        return np.zeros((shown.stop - shown.start, 0), np.float32)
    position, turned, fingers = (np.asarray(seen[key][shown]) for key in felt)
    if tuple(felt) == OF_ROBOMIMIC:
        turned = np.stack([axis_angle(np.roll(quaternion, 1)) for quaternion in turned])
    return np.concatenate([position, turned, fingers], axis=1).astype(np.float32)
