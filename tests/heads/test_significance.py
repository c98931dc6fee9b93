from __future__ import annotations

from math import comb

import numpy as np
import pytest

from finetune.heads.ranking_statistics import helped_by_removal, paired_error_tests, paired_tests
from finetune.runs.head_results import HeadTest
from finetune.runs.multiple_tests import holm
from tests.heads.test_importance_estimate import SITES, site


def mcnemar(lost: int, gained: int) -> float:
    """Return the exact two-sided p value: twice the binomial tail of lost + gained trials with probability 1/2."""
    changed = lost + gained
    tail = sum(comb(changed, k) for k in range(min(lost, gained) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def case(lost: int, gained: int, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are correct with all heads and without one head, with these numbers of lost and gained rows."""
    full = np.array([True] * lost + [False] * gained + [row % 2 == 0 for row in range(rows - lost - gained)])
    without = full.copy()
    without[: lost + gained] ^= True
    return full, without[:, None, None]


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (0, 8), (9, 3), (3, 9), (7, 7), (20, 6)])
def test_mcnemar(lost: int, gained: int) -> None:
    full, without = case(lost, gained)
    (result,) = paired_tests(full, without, [site(0, 1)])
    assert (result.lost, result.gained) == (lost, gained)
    assert result.p_value == pytest.approx(mcnemar(lost, gained), rel=1e-9)
    assert result.p_holm == result.p_value  # one test
    assert result.change == pytest.approx((gained - lost) / 40)
    assert result.change == pytest.approx(without.mean() - full.mean())
    assert result.low <= result.change <= result.high


def test_the_interval_equals_a_bootstrap_over_rows() -> None:
    full, without = case(9, 3, rows=50)
    (result,) = paired_tests(full, without, [site(0, 1)])
    rng = np.random.default_rng(1)
    difference = without[:, 0, 0].astype(float) - full
    drawn = [difference[rng.integers(0, 50, 50)].mean() for _ in range(4000)]
    # Both are multiples of 1/50 = .02. Measured: they differ by at most one step.
    np.testing.assert_allclose([result.low, result.high], np.percentile(drawn, [2.5, 97.5]), atol=0.021)
    assert result.high - result.low > 0.1


def test_all_heads_are_corrected_together() -> None:
    rows = np.zeros((40, 2, 3), dtype=bool)
    full = np.ones(40, dtype=bool)
    for (layer, head), lost in zip([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], [12, 2, 0, 9, 6], strict=True):
        rows[lost:, layer, head] = True
    result = paired_tests(full, rows, SITES)  # there is no head 1.2
    assert [(test.layer, test.head, test.lost) for test in result] == [
        (0, 0, 12),
        (0, 1, 2),
        (0, 2, 0),
        (1, 0, 9),
        (1, 1, 6),
    ]
    assert [test.p_value for test in result] == pytest.approx([mcnemar(n, 0) for n in (12, 2, 0, 9, 6)])
    assert [test.p_holm for test in result] == pytest.approx(
        [5 * mcnemar(12, 0), 2 * mcnemar(2, 0), 1.0, 4 * mcnemar(9, 0), 3 * mcnemar(6, 0)]
    )


def signed_rank(rise: np.ndarray) -> float:
    """Return the exact two-sided p value of Wilcoxon's signed-rank test, from all sign combinations."""
    ranks = np.argsort(np.argsort(np.abs(rise))) + 1
    signs = (np.arange(2 ** len(rise))[:, None] >> np.arange(len(rise))) & 1
    sums, observed = signs @ ranks, ranks[rise > 0].sum()
    return min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))


def test_regression_tests_the_increase_of_squared_errors() -> None:
    rng = np.random.default_rng(0)
    full = rng.random(12)
    without = full[:, None, None] + rng.normal(0.3, 0.4, size=(12, 2, 3))
    result = paired_error_tests(full, without, SITES)
    assert len(result) == 5
    for test in result:
        rise = without[:, test.layer, test.head] - full
        assert test.change == pytest.approx(rise.mean())
        assert (test.lost, test.gained) == ((rise > 0).sum(), (rise < 0).sum())
        assert test.p_value == pytest.approx(signed_rank(rise), rel=1e-9)
        drawn = [rise[rng.integers(0, 12, 12)].mean() for _ in range(4000)]
        # Two bootstraps differ by chance: measured up to .012 of an interval about .4 wide.
        np.testing.assert_allclose([test.low, test.high], np.percentile(drawn, [2.5, 97.5]), atol=0.04)
    assert [test.p_holm for test in result] == holm([test.p_value for test in result])


def test_one_row_and_no_change_have_a_result() -> None:
    (only,) = paired_tests(np.array([True]), np.array([[[False]]]), [site(0, 1)])
    assert (only.change, only.p_value) == (-1.0, 1.0)
    assert only.low == -1.0 < only.high  # one row is not significant
    (unchanged,) = paired_tests(np.ones(100, dtype=bool), np.ones((100, 1, 1), dtype=bool), [site(0, 1)])
    assert unchanged.change == 0.0
    assert unchanged.low < 0.0 < unchanged.high  # no change in this sample does not rule out one in the population
    (zero,) = paired_error_tests(np.array([1.0]), np.array([[[1.0]]]), [site(0, 1)])
    assert (zero.change, zero.low, zero.high, zero.p_value) == (0.0, 0.0, 0.0, 1.0)
    (one,) = paired_error_tests(np.array([1.0]), np.array([[[2.0]]]), [site(0, 1)])
    assert (one.change, one.p_value) == (1.0, 1.0)
    some = np.array([1.0, 1.0, 1.0, 2.0])
    (tied,) = paired_error_tests(np.ones(4), some[:, None, None], [site(0, 1)])
    assert 0 < tied.p_value <= 1


def head_test(change: float, low: float, high: float, p_holm: float) -> HeadTest:
    return HeadTest(1, 2, change, low, high, 0, 0, 0.01, p_holm)


def test_removals_that_help_are_reported_with_their_significance() -> None:
    nothing = head_test(0.0, -0.1, 0.1, 1.0)
    chance, significant = head_test(0.05, 0.01, 0.09, 0.4), head_test(0.2, 0.1, 0.3, 0.001)
    assert helped_by_removal([nothing, head_test(-0.2, -0.3, -0.1, 0.001)], "accuracy") == ""
    message = helped_by_removal([nothing, chance], "accuracy")
    assert message == (
        "Removing one head alone improves accuracy, most for 1.2 (+0.0500 [+0.0100, +0.0900]); "
        "none after Holm's correction for 2 tests, so this can be chance."
    )
    message = helped_by_removal([nothing, chance, significant], "accuracy")
    assert message.startswith("Removing each of 2 heads alone improves accuracy, most for 1.2 (+0.2000")
    assert message.endswith("; 1 of them also after Holm's correction.")


def test_a_lower_error_counts_as_improvement() -> None:
    decrease, increase = head_test(-0.2, -0.3, -0.1, 0.001), head_test(0.2, 0.1, 0.3, 0.001)
    assert helped_by_removal([increase], "mean squared error") == ""
    assert "improves mean squared error, most for 1.2 (-0.2000" in helped_by_removal([decrease], "mean squared error")
