"""Success rates with intervals, paired comparison of two policies, gripper reversals. Pure Python and numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion: k successes in n trials, as fractions in [0, 1].

    No continuity correction. Unlike the normal interval it keeps its coverage near 0 and 1, where policies end up.
    Wilson 1927; method 3 in Newcombe, Statistics in Medicine 17 (1998) 857-872.
    Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} successes in {n} trials have no interval")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = k / n
    centre = rate + z * z / (2 * n)
    half_width = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At k = 0 and k = n the bound is exactly 0 or 1; rounding would leave it 1e-17 away, on either side.
    low = 0.0 if k == 0 else (centre - half_width) / scale
    high = 1.0 if k == n else (centre + half_width) / scale
    return low, high


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p value of McNemar's exact test: b pairs where only the first succeeded, c where only the second did.

    Under the null hypothesis b ~ Binomial(b + c, 1/2); p = min(1, 2 P(X <= min(b, c))). 1.0 without discordant pairs.
    McNemar, Psychometrika 12 (1947); the exact conditional form in Fagerland et al., BMC Med. Res. Methodol. 13:91
    (2013). Integer arithmetic, so large counts neither overflow nor round.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts of discordant pairs must not be negative: {b}, {c}")
    pairs = b + c
    tail = sum(math.comb(pairs, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2**pairs)


def success_summary(outcomes: Sequence[bool]) -> dict[str, Any]:
    """`{"n", "k", "rate", "wilson95": [low, high]}` of a sequence of successes, rates as fractions.

    Raises ValueError for an empty sequence: no trials, no rate.
    """
    n, k = len(outcomes), sum(map(bool, outcomes))
    low, high = wilson(k, n)
    return {"n": n, "k": k, "rate": k / n, "wilson95": [low, high]}


def format_success(summary: Mapping[str, Any]) -> str:
    """`18/20 = 90.0 % [69.9, 97.2]`, from what `success_summary` returns."""
    low, high = summary["wilson95"]
    return f"{summary['k']}/{summary['n']} = {100 * summary['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def paired(a: Mapping[Key, bool], b: Mapping[Key, bool]) -> dict[str, Any]:
    """Compare two policies on the trials (keys) both have run.

    Returns `{"n", "both", "only_a", "only_b", "neither", "difference", "mcnemar_p"}`: counts of shared trials,
    success rate of a minus that of b over them, and the two-sided exact p value. Raises ValueError when no trial is
    shared.
    """
    shared = a.keys() & b.keys()
    if not shared:
        raise ValueError("the two sets of outcomes share no trial: evaluate both on the same tasks and init states")
    both = sum(bool(a[key] and b[key]) for key in shared)
    only_a = sum(bool(a[key] and not b[key]) for key in shared)
    only_b = sum(bool(b[key] and not a[key]) for key in shared)
    return {
        "n": len(shared),
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": len(shared) - both - only_a - only_b,
        "difference": (only_a - only_b) / len(shared),
        "mcnemar_p": mcnemar_exact(only_a, only_b),
    }


def gripper_flips(commands: Sequence[float] | np.ndarray) -> int:
    """Reversals (open to closed or back) in a sequence of gripper commands [T], -1 open to +1 closed.

    A command of exactly 0 keeps the side of the one before it.
    """
    sides = np.sign(np.asarray(commands, dtype=np.float64))
    sides = sides[sides != 0]
    return int(np.count_nonzero(sides[1:] != sides[:-1]))
