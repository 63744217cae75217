"""From a source's conventions to ours: pictures upright, the gripper's sign, actions within [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlaad_ray.configs import ImportDatasetConfig, UserError, config_hash
from vlaad_ray.exchange.records import Demonstration, Item, Plan
from vlaad_ray.store import read_key
from vlaad_ray.types import Episode, EpisodeKey, InitState

CONTENT_VERSION = 1
"""Raise it when the same source and settings would give other episodes."""
FLIPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda image: image,
    "mirror": lambda image: image[:, ::-1],
    "upside_down": lambda image: image[::-1],
    "turn": lambda image: image[::-1, ::-1],
}
WATCHED_STEPS = 10
"""Fingers take about as many steps (0.5 s) to follow a command."""
APART_M = 0.005
"""Fingers so much nearer to each other when told to open than when told to close say that the sign is wrong."""
TOLERANCE = 1e-6
"""An action so far outside [-1, 1] is rounding."""


def key_of(config: ImportDatasetConfig, plan: Plan, item: Item) -> EpisodeKey:
    """The name that an item gets. What we once exported keeps its own, but for the hash of what made it."""
    settings = {
        "version": CONTENT_VERSION,
        "flip": plan.flip,
        "gripper": plan.gripper_means,
        "rescale": config.rescale,
        "pictures": config.pictures,
        "robot": plan.body,
        "source": item.fingerprint,
    }
    if item.footer and config.suite == "none":
        key = read_key(item.footer["key"])
        suite, task, init, policy, seed = key.suite, key.task, key.init, key.policy, key.seed
    else:
        suite, task, init = config.suite, item.task, InitState("imported", item.number)
        policy, seed = config.policy, 0
    return EpisodeKey(suite, task, init, policy, seed, config_hash(**settings))


def episode_of(
    config: ImportDatasetConfig, plan: Plan, item: Item, found: Demonstration
) -> tuple[Episode, dict[str, Any]]:
    """An item as an episode of ours, and what its footer says beside that. Raises UserError for what cannot be one."""
    said = f"{config.from_}: episode {item.number}"
    for what, values in (("action", found.actions), ("state", found.proprio)):
        if not (finite := np.isfinite(values).all(axis=1)).all():
            raise UserError(f"{said}: {what} at step {int(np.argmin(finite))} is not finite; repair the source")
    actions, extra = _actions(config, plan, found.actions, said)
    executed = actions if found.executed is None else _actions(config, plan, found.executed, said)[0]
    if config.gripper_means == "auto":
        check_gripper(plan, found.proprio, actions, said)
    upright = FLIPS[plan.flip]
    images = {
        camera: tuple(np.ascontiguousarray(upright(image)) for image in found.images[camera])
        for camera in plan.body.cameras
    }
    steps, ours = len(actions), item.footer
    succeeds = found.success is not False
    episode = Episode(
        key=key_of(config, plan, item),
        instruction=item.instruction,
        proprio=found.proprio,
        actions=actions,
        executed=executed,
        phases=found.phases or (None,) * steps,
        images=images,
        success_step=ours["success_step"] if ours else steps if succeeds else None,
        success_final=ours["success_final"] if ours else succeeds,
        budget=ours["budget"] if ours else steps,
        embodiment=plan.body,
    )
    known = bool(ours) or found.success is not None
    extra |= {
        "render": config.render or ours.get("render") or "unknown",
        "teacher_noise": ours.get("teacher_noise", {}),
        "kept": episode.success_final,
        "imported": {
            "source": config.source,
            "from": config.from_.name,
            "number": item.number,
            "fingerprint": item.fingerprint,
            "flip": plan.flip,
            "gripper_means": plan.gripper_means,
            "success_known": known,
        },
    }
    return episode, extra


def _actions(
    config: ImportDatasetConfig, plan: Plan, values: np.ndarray, said: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Actions as ours are, and what to remember of how they were."""
    values = np.array(values, np.float32)
    extra: dict[str, Any] = {}
    gripper = plan.body.gripper
    if gripper is not None and plan.gripper_means == "zero_closes":
        values[:, gripper] = 1 - 2 * values[:, gripper]
    if gripper is not None and plan.gripper_means == "minus_closes":
        values[:, gripper] = -values[:, gripper]
    if config.rescale:
        if plan.action_range is None:
            raise UserError(f"--rescale: {config.from_} does not say its least and largest actions")
        low, high = plan.action_range
        moved = [at for at in range(values.shape[1]) if at != gripper or plan.gripper_means == "plus_closes"]
        width = np.where(high > low, high - low, 1)
        values[:, moved] = (2 * (values - low) / width - 1)[:, moved]
        extra["action_range"] = {"low": low.tolist(), "high": high.tolist()}
    if (largest := float(np.abs(values).max(initial=0))) > 1 + TOLERANCE:
        raise UserError(
            f"{said}: an action reaches {largest:.3g}, and students answer within [-1, 1]; give --rescale, or "
            "--gripper-means if it is the gripper's"
        )
    return np.clip(values, -1, 1), extra


def check_gripper(plan: Plan, proprio: np.ndarray, actions: np.ndarray, said: str) -> None:
    """Raises UserError if LIBERO's fingers open when they are told, by our convention, to close."""
    if not plan.body.libero_arm:
        return
    told = actions[:, 6] > 0
    steady = np.array([told[max(0, at - WATCHED_STEPS) : at + 1].std() == 0 for at in range(len(told))])
    steady[:WATCHED_STEPS] = False
    apart = proprio[:, 6] - proprio[:, 7]
    closed, opened = apart[steady & told], apart[steady & ~told]
    if len(closed) and len(opened) and np.median(closed) > np.median(opened) + APART_M:
        raise UserError(
            f"{said}: its fingers are {1000 * np.median(closed):.0f} mm apart when told to close and "
            f"{1000 * np.median(opened):.0f} mm when told to open; give --gripper-means minus_closes (or zero_closes)"
        )
