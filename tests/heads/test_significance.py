from __future__ import annotations

from math import comb

import numpy as np
import pytest

from finetune.heads.ranking_statistics import helped_by_removal, holm, paired_error_tests, paired_tests
from finetune.runs.head_results import HeadTest
from tests.heads.test_importance_estimate import SITES, site


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p value: twice the tail of a fair coin thrown lost + gained times."""
    thrown = lost + gained
    tail = sum(comb(thrown, k) for k in range(min(lost, gained) + 1)) / 2**thrown
    return min(1.0, 2 * tail)


def case(lost: int, gained: int, rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return whether rows are right with all heads and without the one, so many lost and gained."""
    whole = np.array([True] * lost + [False] * gained + [row % 2 == 0 for row in range(rows - lost - gained)])
    now = whole.copy()
    now[: lost + gained] ^= True
    return whole, now[:, None, None]


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (0, 8), (9, 3), (3, 9), (7, 7), (20, 6)])
def test_mcnemar(lost: int, gained: int) -> None:
    whole, without = case(lost, gained)
    (found,) = paired_tests(whole, without, [site(0, 1)])
    assert (found.lost, found.gained) == (lost, gained)
    assert found.p_value == pytest.approx(mcnemar(lost, gained), rel=1e-9)
    assert found.p_holm == found.p_value  # one test
    assert found.change == pytest.approx((gained - lost) / 40)
    assert found.change == pytest.approx(without.mean() - whole.mean())
    assert found.low <= found.change <= found.high


def test_the_interval_is_that_of_rows_drawn_again() -> None:
    whole, without = case(9, 3, rows=50)
    (found,) = paired_tests(whole, without, [site(0, 1)])
    rng = np.random.default_rng(1)
    difference = without[:, 0, 0].astype(float) - whole
    drawn = [difference[rng.integers(0, 50, 50)].mean() for _ in range(4000)]
    # Both move in steps of 1/50 = .02; measured: the same to the step.
    np.testing.assert_allclose([found.low, found.high], np.percentile(drawn, [2.5, 97.5]), atol=0.021)
    assert found.high - found.low > 0.1


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1 is .04, .06, .06, .04; none may be below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_all_heads_are_corrected_together() -> None:
    rows = np.zeros((40, 2, 3), dtype=bool)
    whole = np.ones(40, dtype=bool)
    for (layer, head), lost in zip([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], [12, 2, 0, 9, 6], strict=True):
        rows[lost:, layer, head] = True
    found = paired_tests(whole, rows, SITES)  # the cell (1, 2) is no head
    assert [(test.layer, test.head, test.lost) for test in found] == [
        (0, 0, 12),
        (0, 1, 2),
        (0, 2, 0),
        (1, 0, 9),
        (1, 1, 6),
    ]
    assert [test.p_value for test in found] == pytest.approx([mcnemar(n, 0) for n in (12, 2, 0, 9, 6)])
    assert [test.p_holm for test in found] == pytest.approx(
        [5 * mcnemar(12, 0), 2 * mcnemar(2, 0), 1.0, 4 * mcnemar(9, 0), 3 * mcnemar(6, 0)]
    )


def signed_rank(rise: np.ndarray) -> float:
    """The exact two-sided p value of Wilcoxon's signed-rank test, over all signs."""
    ranks = np.argsort(np.argsort(np.abs(rise))) + 1
    signs = (np.arange(2 ** len(rise))[:, None] >> np.arange(len(rise))) & 1
    sums, seen = signs @ ranks, ranks[rise > 0].sum()
    return min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))


def test_regression_tests_the_rise_of_squared_errors() -> None:
    rng = np.random.default_rng(0)
    whole = rng.random(12)
    without = whole[:, None, None] + rng.normal(0.3, 0.4, size=(12, 2, 3))
    found = paired_error_tests(whole, without, SITES)
    assert len(found) == 5
    for test in found:
        rise = without[:, test.layer, test.head] - whole
        assert test.change == pytest.approx(rise.mean())
        assert (test.lost, test.gained) == ((rise > 0).sum(), (rise < 0).sum())
        assert test.p_value == pytest.approx(signed_rank(rise), rel=1e-9)
        drawn = [rise[rng.integers(0, 12, 12)].mean() for _ in range(4000)]
        # Two draws of resamples differ by chance: measured up to .012 of an interval about .4 wide.
        np.testing.assert_allclose([test.low, test.high], np.percentile(drawn, [2.5, 97.5]), atol=0.04)
    assert [test.p_holm for test in found] == holm([test.p_value for test in found])


def test_one_row_and_no_change_are_no_error() -> None:
    (only,) = paired_tests(np.array([True]), np.array([[[False]]]), [site(0, 1)])
    assert (only.change, only.p_value) == (-1.0, 1.0)
    assert only.low == -1.0 < only.high  # one row proves nothing
    (calm,) = paired_tests(np.ones(100, dtype=bool), np.ones((100, 1, 1), dtype=bool), [site(0, 1)])
    assert calm.change == 0.0
    assert calm.low < 0.0 < calm.high  # that no row changed does not show that none would
    (still,) = paired_error_tests(np.array([1.0]), np.array([[[1.0]]]), [site(0, 1)])
    assert (still.change, still.low, still.high, still.p_value) == (0.0, 0.0, 0.0, 1.0)
    (one,) = paired_error_tests(np.array([1.0]), np.array([[[2.0]]]), [site(0, 1)])
    assert (one.change, one.p_value) == (1.0, 1.0)
    some = np.array([1.0, 1.0, 1.0, 2.0])
    (tied,) = paired_error_tests(np.ones(4), some[:, None, None], [site(0, 1)])
    assert 0 < tied.p_value <= 1


def head_test(change: float, low: float, high: float, p_holm: float) -> HeadTest:
    return HeadTest(1, 2, change, low, high, 0, 0, 0.01, p_holm)


def test_help_by_removal_is_told_with_how_sure_it_is() -> None:
    nothing = head_test(0.0, -0.1, 0.1, 1.0)
    chance, sure = head_test(0.05, 0.01, 0.09, 0.4), head_test(0.2, 0.1, 0.3, 0.001)
    assert helped_by_removal([nothing, head_test(-0.2, -0.3, -0.1, 0.001)], "accuracy") == ""
    message = helped_by_removal([nothing, chance], "accuracy")
    assert message == (
        "Removing one head alone improves accuracy, most for 1.2 (+0.0500 [+0.0100, +0.0900]); "
        "none after Holm's correction for 2 tests, so this can be chance."
    )
    message = helped_by_removal([nothing, chance, sure], "accuracy")
    assert message.startswith("Removing each of 2 heads alone improves accuracy, most for 1.2 (+0.2000")
    assert message.endswith("; 1 of them also after Holm's correction.")


def test_a_lower_error_counts_as_improvement() -> None:
    falls, rises = head_test(-0.2, -0.3, -0.1, 0.001), head_test(0.2, 0.1, 0.3, 0.001)
    assert helped_by_removal([rises], "mean squared error") == ""
    assert "improves mean squared error, most for 1.2 (-0.2000" in helped_by_removal([falls], "mean squared error")
