"""Values worked out elsewhere: published tables, or by hand in integers."""

import numpy as np
import pytest

from vlaad_ray.semantics.smoothness import gripper_flips, reversals
from vlaad_ray.stats import format_success, mcnemar_exact, paired, success_of, wilson
from vlaad_ray.summaries import Paired


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3, printed to four decimals.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_score_interval_not_the_normal_or_corrected_one(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_for_the_papers_best_suite():
    """193/200 is 93.0-98.3 (METHOD.md's argument why 0.27 % can't be resolved)."""
    low, high = wilson(193, 200)
    assert (round(100 * low, 1), round(100 * high, 1)) == (93.0, 98.3)


def test_wilson_never_leaves_the_unit_interval_and_is_symmetric():
    """Rounding must not give -1e-17 or 1 + 1e-16: summaries are compared with >= 0 and drawn on a 0-100 % axis."""
    for n in range(1, 60):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0.0 <= low <= k / n <= high <= 1.0
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_a_higher_confidence_widens_the_interval():
    """Catches a one-sided quantile: 0.95 taken as z = 1.645."""
    narrow, wide = wilson(15, 20, confidence=0.90), wilson(15, 20, confidence=0.99)
    assert wide[0] < wilson(15, 20)[0] < narrow[0] and narrow[1] < wilson(15, 20)[1] < wide[1]


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="trials"):
        wilson(k, n)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (1, 7, 2 * (1 + 8) / 256),  # Fagerland et al. 2013, airway hyper-responsiveness: 0.070
        (1, 9, 2 * (1 + 10) / 1024),  # R: binom.test(1, 10) gives 0.02148
        (0, 5, 0.0625),  # R: binom.test(0, 5)
        (3, 12, 2 * (1 + 15 + 105 + 455) / 32768),  # R: binom.test(3, 15) gives 0.03516
        (4, 4, 1.0),  # twice the half that holds the centre is above 1
        (0, 0, 1.0),
        (0, 1, 1.0),
    ],
)
def test_mcnemar_is_the_exact_two_sided_binomial(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p, rel=1e-12)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_mcnemar_agrees_with_another_implementation_at_large_counts():
    """Catches overflow or underflow of the binomial sum (Agresti's approval ratings: 150 against 86)."""
    scipy_stats = pytest.importorskip("scipy.stats")
    assert mcnemar_exact(150, 86) == pytest.approx(scipy_stats.binomtest(86, 236).pvalue, rel=1e-9)
    assert mcnemar_exact(1400, 1600) == pytest.approx(scipy_stats.binomtest(1400, 3000).pvalue, rel=1e-6)


def test_success_and_its_text():
    success = success_of([True] * 18 + [False] * 2)
    assert (success.n, success.k, success.rate) == (20, 18, 0.9)
    assert format_success(success) == "18/20 = 90.0 % [69.9, 97.2]"
    with pytest.raises(ValueError, match="0 trials"):
        success_of([])


def test_paired_uses_only_the_shared_trials():
    """A student evaluated on fewer states must not be charged with the ones it never ran."""
    teacher = {(0, 20): True, (0, 21): True, (0, 22): True, (0, 23): False, (1, 20): True}
    student = {(0, 20): True, (0, 21): False, (0, 22): False, (0, 23): False, (2, 20): True}
    assert paired(teacher, student) == Paired(n=4, both=1, only_a=2, only_b=0, neither=1, difference=0.5, mcnemar_p=0.5)


def test_paired_without_shared_trials_says_so():
    with pytest.raises(ValueError, match="share no trial"):
        paired({1: True}, {2: True})


@pytest.mark.parametrize(
    ("commands", "flips"),
    [
        ([], 0),
        ([-1], 0),
        ([-1, -1, 1, 1], 1),
        ([-1, 1, -1], 2),
        ([-0.2, 0.3, 0.9], 1),
        ([1, 0, 1, 0, -1], 1),
        ([0, 0, 1], 0),
        ([0, -1, 0, 1], 1),
        ([0, 0], 0),
    ],
)
def test_gripper_flips_count_reversals_and_ignore_zeros(commands, flips):
    assert gripper_flips(commands) == flips


def test_a_first_command_after_zeros_is_no_reversal():
    """Counted here and not there, one episode had two numbers of flips."""
    assert not reversals(np.array([0.0, 0.0, 1.0, 1.0])).any()
