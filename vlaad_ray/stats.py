"""Success rates with intervals, paired comparison of two policies. Pure Python and numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

from vlaad_ray.summaries import Paired, Success

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


def success_of(outcomes: Sequence[bool]) -> Success:
    """Of a sequence of trials. Raises ValueError for an empty one: no trials, no rate."""
    n, k = len(outcomes), sum(map(bool, outcomes))
    interval = wilson(k, n)
    return Success(n, k, k / n, interval)


def format_success(success: Success) -> str:
    """`18/20 = 90.0 % [69.9, 97.2]`."""
    low, high = success.wilson95
    return f"{success.k}/{success.n} = {100 * success.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def paired(a: Mapping[Key, bool], b: Mapping[Key, bool]) -> Paired:
    """Compare two policies on the trials (keys) both have run. Raises ValueError when no trial is shared."""
    shared = a.keys() & b.keys()
    if not shared:
        raise ValueError("the two sets of outcomes share no trial: evaluate both on the same tasks and init states")
    both = sum(bool(a[key] and b[key]) for key in shared)
    only_a = sum(bool(a[key] and not b[key]) for key in shared)
    only_b = sum(bool(b[key] and not a[key]) for key in shared)
    return Paired(
        n=len(shared),
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=len(shared) - both - only_a - only_b,
        difference=(only_a - only_b) / len(shared),
        mcnemar_p=mcnemar_exact(only_a, only_b),
    )


def paired_ratio(a: Mapping[Key, bool], b: Mapping[Key, bool], confidence: float = 0.95) -> dict[str, Any]:
    """Success rate of a over that of b on the trials (keys) both have run, with an interval that minds the pairing.

    Returns `{"n", "ratio", "interval95": [low, high]}`; ratio and interval are None where b, or both, never succeed.
    Bonett and Price's hybrid of two Wilson score intervals (Statistics in Medicine 25 (2006) 3039-3047), recommended
    for paired ratios by Fagerland, Lydersen and Laake (Statistics in Medicine 33 (2014) 2850-2875). Unlike a bootstrap
    it does not shrink to a point when no pair is discordant.
    """
    counts = paired(a, b)
    both, only_a, only_b = counts.both, counts.only_a, counts.only_b
    n, first, second = both + only_a + only_b, both + only_a, both + only_b
    if not second:
        return {"n": counts.n, "ratio": None, "interval95": None}
    discordance = math.sqrt((only_a + only_b + 2) / ((first + 1) * (second + 1)))
    spreads = (math.sqrt((1 - (k + 1) / (n + 2)) / (k + 1)) for k in (first, second))
    z = discordance / sum(spreads) * NormalDist().inv_cdf((1 + confidence) / 2)

    def score_interval(k: int) -> tuple[float, float]:
        half = z * math.sqrt(z * z + 4 * k * (1 - k / n))
        return (2 * k + z * z - half) / (2 * (n + z * z)), (2 * k + z * z + half) / (2 * (n + z * z))

    (low_a, high_a), (low_b, high_b) = score_interval(first), score_interval(second)
    return {"n": counts.n, "ratio": first / second, "interval95": [low_a / high_b, high_a / low_b]}


def ratio_interval(counts: Sequence[float], frames: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of sum(counts) / sum(frames), episodes taken as the independent draws (ratio estimator).

    Cochran, Sampling Techniques (1977), eq. 6.13; the lower end is cut off at 0. None for one episode.
    """
    if len(counts) < 2:
        return None
    y, x = np.asarray(counts, float), np.asarray(frames, float)
    rate = float(y.sum() / x.sum())
    spread = float(((y - rate * x) ** 2).sum()) * len(x) / (len(x) - 1)
    error = 1.96 * math.sqrt(spread) / float(x.sum())
    return max(0.0, rate - error), rate + error
