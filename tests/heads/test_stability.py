from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from finetune.heads import ranking_statistics
from finetune.heads.importance_estimate import Estimate
from finetune.heads.ranking_statistics import HALVINGS, fold_stability, split_half_stability


def test_rows_without_noise_give_the_same_ranking_in_any_half() -> None:
    rows = np.tile(np.arange(6.0).reshape(1, 2, 3), (10, 1, 1))
    result = split_half_stability(rows)
    assert result is not None
    assert (result.value, result.low, result.high) == pytest.approx(
        (1.0, 1.0, 1.0)
    )  # not exact, because tau is a quotient with square roots


def test_rows_of_pure_noise_give_unrelated_rankings() -> None:
    rows = np.random.default_rng(0).normal(size=(400, 4, 10))
    result = split_half_stability(rows)
    assert result is not None
    # The halves of one sample are dependent: one is above the mean where the other is below. So tau is just below 0.
    assert abs(result.value) < 0.25
    assert result.low < result.value < result.high


def test_halves_are_disjoint_and_contain_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, halves = np.eye(9)[:, None, :], []

    def spy(first: np.ndarray, second: np.ndarray) -> object:
        halves.append((first > 0, second > 0))  # column n is above 0 where row n is in the half
        return stats.kendalltau(first, second)

    monkeypatch.setattr(ranking_statistics, "stats", SimpleNamespace(kendalltau=spy))
    assert split_half_stability(rows) is not None
    assert len(halves) == HALVINGS
    for first, second in halves:
        assert (first.sum(), second.sum()) == (4, 5)
        assert not (first & second).any()
    assert len({tuple(first) for first, _ in halves}) > 50


def test_stability_is_the_mean_tau_over_random_halvings() -> None:
    rows = np.random.default_rng(3).normal(size=(12, 2, 3)) + np.arange(6.0).reshape(2, 3)
    rng, expected = np.random.default_rng(7), []
    for _ in range(100):
        order = rng.permutation(12)
        halves = [rows.reshape(12, 6)[order[:6]].mean(0), rows.reshape(12, 6)[order[6:]].mean(0)]
        pairs = [(a, b) for a in range(6) for b in range(a)]
        signs = [np.prod([np.sign(half[a] - half[b]) for half in halves]) for a, b in pairs]
        expected.append(sum(signs) / len(pairs))
    result = split_half_stability(rows, seed=7)
    assert result is not None
    assert result.value == pytest.approx(np.mean(expected))
    assert (result.low, result.high) == pytest.approx(np.percentile(expected, [2.5, 97.5]))


def test_cells_without_a_head_do_not_count() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 2, 3))
    rows[:, 1, 2] = np.nan
    flat = rows.reshape(20, 1, 6)[:, :, :5]
    assert split_half_stability(rows) == split_half_stability(flat)


@pytest.mark.parametrize(
    "rows",
    [np.arange(18.0).reshape(3, 2, 3), np.ones((10, 2, 3)), np.arange(9.0).reshape(9, 1, 1)],
    ids=["three rows", "heads all equal", "one head"],
)
def test_stability_is_none_without_rankings_to_compare(rows: np.ndarray) -> None:
    assert split_half_stability(rows) is None


def test_fold_stability_is_the_mean_tau_over_pairs_of_folds() -> None:
    up, down = np.arange(6.0).reshape(2, 3), -np.arange(6.0).reshape(2, 3)
    result = fold_stability(np.stack([up, up, down]))
    assert result is not None
    assert (result.value, result.low, result.high) == pytest.approx((-1 / 3, -1.0, 1.0))
    assert fold_stability(up[None]) is None
    assert fold_stability(np.stack([up, np.zeros((2, 3))])) is None


def test_the_finish_function_is_applied_to_each_half() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 2, 3)) + 2
    halves = []

    def finish(estimate: Estimate) -> Estimate:
        halves.append(estimate.values)
        return Estimate(-estimate.values)

    negated = split_half_stability(rows, finish=finish)
    assert negated == split_half_stability(rows)  # negated, both halves agree as before
    assert len(halves) == 2 * HALVINGS
