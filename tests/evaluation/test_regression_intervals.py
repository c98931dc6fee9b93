"""Intervals of regression metrics: finetune/evaluation/regression_intervals.py."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.regression_intervals import mean_interval, regression_intervals
from finetune.runs.results import MetricValue


def test_every_metric_has_an_interval_that_contains_its_value() -> None:
    rng = np.random.default_rng(0)
    actual = rng.normal(size=100)
    predicted = actual + rng.normal(size=100)
    metrics = regression_intervals(predicted, actual)
    assert set(metrics) == {"mean_squared_error", "mean_absolute_error", "pearson", "spearman"}
    for cell in metrics.values():
        assert cell.low is not None
        assert cell.high is not None
        assert cell.value is not None
        assert cell.low < cell.value < cell.high
    few = regression_intervals(predicted[:4], actual[:4])["pearson"]
    assert (few.low, few.note) == (None, "")


def test_the_interval_of_symmetric_values_is_that_of_the_t_distribution() -> None:
    values = np.concatenate([np.arange(1.0, 41), [20.5]])  # without skewness
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx(stats.t.interval(0.95, 40, 20.5, stats.sem(values)))


def test_the_interval_of_skewed_values_inverts_the_transformation_of_hall() -> None:
    values = np.random.default_rng(1).normal(size=60) ** 2
    interval = mean_interval(values)
    assert interval.low is not None
    assert interval.high is not None
    skewness = stats.skew(values, bias=False) / np.sqrt(60)
    for bound, expected in ((interval.low, stats.t.ppf(0.975, 59)), (interval.high, stats.t.ppf(0.025, 59))):
        t = (values.mean() - bound) / stats.sem(values)
        assert t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6 == pytest.approx(expected)
    assert interval.high - values.mean() > values.mean() - interval.low


def test_a_correlation_of_normal_values_has_the_interval_of_fisher() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=4000)
    y = x + rng.normal(size=4000)
    expected = stats.pearsonr(x, y).confidence_interval()
    metrics = regression_intervals(x, y)
    # The standard error comes from 4,000 influences, and has an error of about 1 / sqrt(2 * 4,000) = 1 %.
    width = expected.high - expected.low
    assert metrics["pearson"].low == pytest.approx(expected.low, abs=0.03 * width)
    assert metrics["pearson"].high == pytest.approx(expected.high, abs=0.03 * width)
    # Bonett and Wright (2000), for normal values
    spearman = metrics["spearman"]
    assert spearman.value is not None
    half = 1.96 * np.sqrt((1 + spearman.value**2 / 2) / 3997)
    assert spearman.low == pytest.approx(np.tanh(np.arctanh(spearman.value) - half), abs=0.1 * width)


@pytest.mark.parametrize("rows", [4, 20])
def test_an_undefined_metric_has_neither_value_nor_interval(rows: int) -> None:
    metrics = regression_intervals(np.arange(rows) / 10, np.ones(rows))
    assert metrics["pearson"] == metrics["spearman"] == MetricValue(None)
    assert metrics["mean_squared_error"].value is not None


def test_equal_errors_and_perfect_correlations_have_no_interval() -> None:
    values = np.arange(30.0)
    metrics = regression_intervals(values + 0.5, values)
    assert metrics["mean_absolute_error"] == MetricValue(0.5, note="no interval: all rows have the same error")
    assert metrics["pearson"] == MetricValue(pytest.approx(1.0), note="no interval: the correlation is perfect")
    assert metrics["spearman"].low is None


def test_an_outlier_makes_the_interval_wide() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=40)
    references = predictions + rng.normal(size=40)
    without = regression_intervals(predictions, references)
    references[0] = 50
    metrics = regression_intervals(predictions, references)
    for name in ("mean_squared_error", "mean_absolute_error"):
        high, before, value = metrics[name].high, without[name].high, metrics[name].value
        assert high is not None
        assert before is not None
        assert value is not None
        assert high - value > 3 * before


def test_large_values_do_not_reduce_precision() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 50))
    first, shifted = regression_intervals(x, y), regression_intervals(x + 1e9, y + 1e9)
    assert (shifted["pearson"].low, shifted["pearson"].high) == pytest.approx(
        (first["pearson"].low, first["pearson"].high), abs=1e-6
    )


def test_intervals_need_little_memory() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    regression_intervals(values, values + np.abs(values))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * values.nbytes  # a few columns
