"""One episode file: what is counted of its targets, and its repaired copy. Ray Data maps `audit_episode` over all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlaad_ray import store
from vlaad_ray.configs import Location
from vlaad_ray.semantics import phases, smoothness
from vlaad_ray.types import Episode

Counts = Counter[str]
"""Sums over frames: frames, revoked, reversals, meant_reversals, stalled; of each jerk its squares, and how many."""


def audit_episode(
    path: Location, episode: Episode, footer: dict[str, Any], longest: int, repair: Location | None
) -> dict[str, Any]:
    """An episode's counts; with `repair`, its repaired copy is stored there."""
    record: dict[str, Any] = {
        "path": str(path),
        "episode": episode.key.name,
        "suite": episode.key.suite,
        "task": episode.key.task,
        "instruction": episode.instruction,
        "success_final": episode.success_final,
        "gripper": episode.embodiment.gripper is not None,
        "injected": footer.get("teacher_noise", {}).get("flip_rate"),
        **measure(episode, longest),
    }
    if repair is not None:
        record["repair"] = write_repaired(path, repair, episode, footer, longest)
    return record


def measure(episode: Episode, longest: int) -> dict[str, Any]:
    """Counts over the episode, by the rules' phase and by the teacher's own, and lengths of the revoked bursts."""
    body = episode.embodiment
    motions = [number for number in range(body.action_dim) if number != body.gripper]
    # Without a gripper: one that is never told anything.
    gripper = episode.actions[:, body.gripper] if body.gripper is not None else np.zeros(len(episode))
    revoked = smoothness.self_revoked(gripper, longest)
    meant = smoothness.meant_gripper(gripper, longest)
    columns = {
        "frames": np.ones(len(episode)),
        "revoked": revoked,
        "reversals": smoothness.reversals(gripper),
        "meant_reversals": smoothness.reversals(meant),
        "stalled": smoothness.stalled(episode.actions[:, motions]),
    }
    jerks = {
        "asked": smoothness.asked_jerk(episode.actions[:, motions[:3] if body.libero_arm else motions]),
        "moved": smoothness.moved_jerk(episode.proprio[:, :3], body.rate_hz)
        if body.libero_arm
        else np.full(len(episode), np.nan),
    }
    for name, jerk in jerks.items():
        columns[f"{name}_squares"] = np.nan_to_num(jerk) ** 2
        columns[f"{name}_known"] = ~np.isnan(jerk)

    def by_label(labels: Sequence[str | None]) -> dict[str, Counts]:
        return {
            label: Counter({name: float(column[at].sum()) for name, column in columns.items()})
            for label in phases.PHASES
            if (at := np.array([each == label for each in labels], bool)).any()
        }

    starts = np.flatnonzero(np.diff(revoked.astype(int), prepend=0) == 1)
    stops = np.flatnonzero(np.diff(revoked.astype(int), append=0) == -1) + 1
    return {
        "total": Counter({name: float(column.sum()) for name, column in columns.items()}),
        # From what was meant: a flip must not cut a phase in two.
        "rules": by_label(phases.classify(episode.proprio, meant, episode.instruction)) if body.libero_arm else {},
        "stated": by_label(episode.phases),
        "bursts": Counter(str(length) for length in stops - starts),
    }


def write_repaired(
    path: Location, repair: Location, episode: Episode, footer: dict[str, Any], longest: int
) -> dict[str, int]:
    """Store the episode with the gripper that was meant; say how much that changed, in steps and in the rules' phases.

    The executed actions stay what they were, and so do images.
    """
    repaired, body = episode.actions.copy(), episode.embodiment
    if body.gripper is not None:
        repaired[:, body.gripper] = smoothness.meant_gripper(repaired[:, body.gripper], longest)
    before, after = (
        phases.classify(episode.proprio, actions[:, body.gripper], episode.instruction) if body.libero_arm else ()
        for actions in (episode.actions, repaired)
    )
    changed = int((repaired != episode.actions).any(axis=1).sum())
    note = {"from": footer["content_hash"], "gripper_steps": changed, "longest": longest}
    store.copy_with_actions(path, repair, repaired, {"repaired": note})
    return {"steps": changed, "phase_frames": sum(a != b for a, b in zip(before, after, strict=True))}
