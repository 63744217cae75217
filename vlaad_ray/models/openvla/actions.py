"""Action tokens to robot commands: bins, un-normalisation, gripper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaad_ray.configs import UserError
from vlaad_ray.types import ACTION_DIM


@dataclass(frozen=True)
class ActionStatistics:
    """How one data set's actions were normalised: 1st and 99th percentile of a dimension became -1 and +1."""

    q01: np.ndarray
    """[7] float64."""
    q99: np.ndarray
    """[7] float64."""
    mask: np.ndarray
    """[7] bool: False where a dimension was left as it was (the gripper, 0 closed to 1 open)."""


def choose_key(statistics: Mapping[str, Any], suite: str, key: str | None, source: str) -> str:
    """The data set to un-normalise with: `key`, or the suite's own, under either of the names that are in use."""
    for name in (key,) if key is not None else (suite, f"{suite}_no_noops"):
        if name in statistics:
            return name
    wanted = f"un-norm key {key!r}" if key is not None else f"statistics for {suite!r}"
    raise UserError(f"{source} has no {wanted}; choose an un-norm key of: {', '.join(sorted(statistics)) or '(none)'}")


def parse_statistics(entry: Any, source: str) -> ActionStatistics:
    """`entry` is a data set's record in dataset_statistics.json or config.json's norm_stats.

    No mask, or null, means that every dimension was normalised: without one the authors' training does that. (Their
    prediction takes null for "none was", since np.where does.)
    """
    try:
        action = entry["action"]
        q01, q99 = (np.asarray(action[name], np.float64) for name in ("q01", "q99"))
        mask = np.asarray([True] * q01.size if action.get("mask") is None else action["mask"], bool)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: no usable action statistics ({error!r}); it needs action.q01 and action.q99"
        ) from None
    if not q01.shape == q99.shape == mask.shape == (ACTION_DIM,):
        raise UserError(
            f"{source}: actions of {q01.size}, {q99.size} and {mask.size} numbers (q01, q99, mask), "
            f"LIBERO's have {ACTION_DIM}; choose another un-norm key"
        )
    return ActionStatistics(q01, q99, mask)


def tokens_to_actions(tokens: np.ndarray, vocabulary_end: int, bins: int, statistics: ActionStatistics) -> np.ndarray:
    """[B, 7] token ids -> [B, 7] float32 actions for LIBERO.

    Token vocabulary_end - 1 - i stands for bin i of [-1, 1]: there is a centre between each two of the `bins` edges,
    and the last bin shares the last centre. A token that is no action counts as the nearest bin, as with the authors.
    The gripper comes as 0 (closed) to 1 (open): half-way decides, then the sign turns to LIBERO's (-1 open, +1 closed).
    """
    edges = np.linspace(-1, 1, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    normalised = centres[np.clip(vocabulary_end - 1 - tokens, 0, len(centres) - 1)]
    span = statistics.q99 - statistics.q01
    actions = np.where(statistics.mask, (normalised + 1) / 2 * span + statistics.q01, normalised)
    actions[:, -1] = -np.sign(2 * actions[:, -1] - 1)
    return np.clip(actions, -1, 1).astype(np.float32)


def actions_to_tokens(actions: np.ndarray, vocabulary_end: int, bins: int, statistics: ActionStatistics) -> np.ndarray:
    """[..., 7] actions for LIBERO -> [..., 7] int64 token ids: what tokens_to_actions takes for the nearest actions.

    As the authors' ActionTokenizer has it: the bin that a normalised number falls into; the highest one has a bin of
    its own. The gripper comes with LIBERO's sign (-1 open, +1 closed).
    """
    wanted = np.asarray(actions, np.float64).copy()
    wanted[..., -1] = (1 - wanted[..., -1]) / 2
    span = np.where(statistics.q99 > statistics.q01, statistics.q99 - statistics.q01, 1)
    normalised = np.where(statistics.mask, 2 * (wanted - statistics.q01) / span - 1, wanted)
    places = np.digitize(normalised.clip(-1, 1), np.linspace(-1, 1, bins)) - 1
    return vocabulary_end - 1 - places
