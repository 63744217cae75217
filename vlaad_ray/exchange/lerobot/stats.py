"""Statistics of features as LeRobot has them: of each episode, and of several from those of each.

Mean, deviation and extremes of several episodes are those of all their frames. Quantiles of several are the episodes'
quantiles, weighted by their frames, as in LeRobot itself; within an episode they are the least value that so many
frames do not exceed (LeRobot's, of histograms with 5,000 bins, is in the same bin).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Stats = Mapping[str, np.ndarray]
"""min, max, mean, std, count, q01, q10, q50, q90, q99. count is of shape [1], the others of the feature's; of pictures
they are [3, 1, 1]."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
FEWEST, MOST = 100, 10_000
"""Pictures of an episode that are looked at, where it has so many."""


def of_numbers(values: np.ndarray) -> Stats:
    """Of [T] or [T, N] numbers; [1] or [N] each."""
    values = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
        **dict(
            zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0, method="inverted_cdf"), strict=True)
        ),
    }


def sampled(steps: int) -> list[int]:
    """Which of an episode's pictures LeRobot takes statistics of: T ** 0.75 of them, spread evenly."""
    count = min(steps, max(FEWEST, min(int(steps**0.75), MOST)))
    return [int(at) for at in np.round(np.linspace(0, steps - 1, count))]


def of_pictures(counts: np.ndarray, pictures: int) -> Stats:
    """Of pictures, from how often each of 256 values occurs in each channel, [3, 256]; in 0 to 1."""
    values = np.arange(256) / 255
    total = counts.sum(axis=1, keepdims=True)
    mean = (counts * values).sum(axis=1, keepdims=True) / total
    seen = counts > 0
    below = counts.cumsum(axis=1)
    found = {
        "min": values[seen.argmax(axis=1)],
        "max": values[255 - seen[:, ::-1].argmax(axis=1)],
        "mean": mean[:, 0],
        "std": np.sqrt((counts * (values - mean) ** 2).sum(axis=1) / total[:, 0]),
        **{name: values[(below >= at * total).argmax(axis=1)] for name, at in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1) for name, value in found.items()}, "count": np.array([pictures])}


def of_several(stats: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """By feature, from those of episodes or of several of them: in whatever groups, the same but for rounding."""
    found: dict[str, Stats] = {}
    for name in stats[0]:
        parts = [each[name] for each in stats]
        count = np.array([part["count"][0] for part in parts])
        weights = count / count.sum()

        def mean_of(values: Sequence[np.ndarray], weights: np.ndarray = weights) -> np.ndarray:
            return np.tensordot(weights, np.stack(values), axes=1)

        mean = mean_of([part["mean"] for part in parts])
        found[name] = {
            "min": np.min([part["min"] for part in parts], axis=0),
            "max": np.max([part["max"] for part in parts], axis=0),
            "mean": mean,
            "std": np.sqrt(mean_of([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])),
            "count": np.array([count.sum()]),
            **{quantile: mean_of([part[quantile] for part in parts]) for quantile in QUANTILES},
        }
    return found


def plain(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """As JSON has them."""
    return {name: {key: value.tolist() for key, value in of.items()} for name, of in stats.items()}


def from_plain(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Stats]:
    return {name: {key: np.asarray(value) for key, value in of.items()} for name, of in stats.items()}
