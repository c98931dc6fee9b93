"""Intervals of metrics of weighted rows: finetune/evaluation/weighted_bootstrap.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss

from finetune.evaluation.weighted_bootstrap import bias_corrected_bounds, interval_of, random_weights


def test_the_interval_of_a_mean_is_that_of_the_t_distribution() -> None:
    values = np.random.default_rng(0).normal(size=100)
    interval = interval_of(lambda weights: float(weights @ values / 100), 100, samples=4000, seed=1)
    expected = stats.t.interval(0.95, 99, values.mean(), values.std(ddof=1) / 10)
    # A percentile of 4,000 values has a standard error of 0.004 here, and the sample is a little skewed.
    assert interval == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("rows", [50, 400])
def test_coverage_of_a_skewed_mean_is_near_95_percent(rows: int) -> None:
    """The squares of normal values have the mean 1 and a skewness of 2.8; 500 intervals have an error of 1 %."""
    rng, trials = np.random.default_rng(rows), 500
    drawn = rng.standard_exponential((300, rows))
    weights = drawn / drawn.sum(1, keepdims=True)
    inside = []
    for _ in range(trials):
        values = rng.normal(size=rows) ** 2
        low, high = bias_corrected_bounds(float(values.mean()), weights @ values, rows)
        assert low is not None
        assert high is not None
        inside.append(low <= 1 <= high)
    assert 0.95 - 3 * 0.01 - 0.01 <= np.mean(inside) <= 0.98  # with 50 rows the expected coverage is 0.935


def test_a_metric_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    probabilities = np.clip(np.where(labels == 1, 0.7, 0.3) + rng.normal(scale=0.2, size=60), 0.01, 0.99)

    def metric(weights: np.ndarray) -> float:
        return float(log_loss(labels, probabilities, sample_weight=weights))

    low, high = interval_of(metric, 60, samples=100, seed=0)
    assert low is not None
    assert high is not None
    assert low < log_loss(labels, probabilities) < high


def test_weights_are_those_of_the_bayesian_bootstrap() -> None:
    weights = np.array(list(random_weights(8, 3000, 0)))
    assert weights.shape == (3000, 8)
    assert weights.min() > 0
    assert weights.sum(1) == pytest.approx(8)
    assert weights.var(0) == pytest.approx(7 / 9, abs=0.1)  # (N - 1) / (N + 1)


def test_the_same_seed_gives_the_same_interval() -> None:
    first, same, other = (interval_of(lambda w: float(w[0] - w[1]), 20, samples=50, seed=seed) for seed in (1, 1, 2))
    assert first == same != other


def test_undefined_and_constant_metrics_have_no_interval() -> None:
    assert interval_of(lambda weights: float("nan"), 30, samples=100, seed=0) == (None, None)
    assert interval_of(lambda weights: float(weights.sum()), 30, samples=100, seed=0) == (None, None)
    assert interval_of(lambda weights: float(weights[0]), 1, samples=100, seed=0) == (None, None)
    numbers = np.arange(100.0)
    assert bias_corrected_bounds(50.0, np.where(numbers < 20, np.nan, numbers), 30) == (None, None)
    few = bias_corrected_bounds(50.0, np.where(numbers < 5, np.nan, numbers), 30)
    assert few == bias_corrected_bounds(50.0, numbers[5:], 30) != (None, None)
