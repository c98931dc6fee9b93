from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.paired_differences import scores_and_covariances
from finetune.evaluation.two_level_interval import difference_interval, row_covariance, series_interval
from finetune.recipe.named_metrics import lower_is_better, metric_bounds
from finetune.recipe.names import METRICS
from finetune.runs.results import MetricValue

ROWS, CLASSES = 400, 3


def _seeds(count: int, *, sets: bool = False) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the predictions of seeds that share some of their errors, and the labels."""
    rng = np.random.default_rng(count)
    labels = rng.integers(0, 2 if sets else CLASSES, (ROWS, CLASSES) if sets else ROWS)
    hard = rng.random(ROWS) < 0.3
    wrong = [hard & (rng.random(ROWS) < 0.6) for _ in range(count)]
    swapped = 1 - labels if sets else (labels + 1) % CLASSES
    return [np.where(rows[:, None] if sets else rows, swapped, labels) for rows in wrong], labels


def test_the_interval_of_a_series_follows_its_formula() -> None:
    scores, covariance = [0.8, 0.83, 0.89], np.array([[9.0, 2, 3], [2, 9, 4], [3, 4, 9]]) * 1e-4
    seeds, rows = np.var(scores, ddof=1) / 3, 3e-4  # the mean of 2, 3 and 4
    degrees = 2 * (seeds + rows) / seeds
    width = stats.t.ppf(0.975, degrees) * np.sqrt(seeds + rows)
    interval = series_interval(scores, covariance)
    assert interval.value == pytest.approx(0.84)
    assert (interval.low, interval.high) == (pytest.approx(0.84 - width), pytest.approx(0.84 + width))
    # The logit of 0.84, plus or minus the width times the derivative of the logit.
    bounded = series_interval(scores, covariance, (0, 1))
    expected = np.log(0.84 / 0.16) + width / (0.84 * 0.16) * np.array([-1, 1])
    assert np.array([bounded.low, bounded.high]) == pytest.approx(1 / (1 + np.exp(-expected)))
    # Between -1 and 1 it is the transform of Fisher for correlations.
    correlation = series_interval(scores, covariance, (-1, 1))
    expected = np.tanh(np.arctanh(0.84) + width / (1 - 0.84**2) * np.array([-1, 1]))
    assert np.array([correlation.low, correlation.high]) == pytest.approx(expected)


def test_without_error_of_the_rows_it_is_a_t_interval_and_without_seeds_a_normal_one() -> None:
    scores = [0.8, 0.83, 0.89]
    negative = series_interval(scores, np.full((3, 3), -1e-4))
    low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    assert (negative.low, negative.high) == (pytest.approx(low), pytest.approx(high))
    for equal in ([0.8], [0.8, 0.8]):
        interval = series_interval(equal, np.full((len(equal), len(equal)), 4e-4))
        assert interval.low == pytest.approx(0.8 - 1.959964 * 0.02)


def test_there_is_no_interval_where_nothing_varies_or_nothing_is_known() -> None:
    assert series_interval([1.0, 1.0], np.zeros((2, 2)), (0, 1)) == MetricValue(1)
    assert series_interval([0.8, 0.9], np.full((2, 2), np.nan)).low is None
    assert series_interval([0.8, np.nan], np.ones((2, 2))).value is None
    assert difference_interval(([0.5], [0.5]), np.zeros((2, 2))).low is None


def test_the_difference_follows_its_formula() -> None:
    first, second = [0.8, 0.82, 0.87], [0.9, 0.94]
    covariance = np.full((5, 5), 2e-4)
    covariance[:3, :3], covariance[3:, 3:] = 3e-4, 5e-4
    np.fill_diagonal(covariance, 9e-4)
    parts = [np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 2]
    variance = sum(parts) + 3e-4 + 5e-4 - 2 * 2e-4
    degrees = variance * sum(parts) / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    difference = difference_interval((first, second), covariance)
    assert difference.value == pytest.approx(0.09)
    assert difference.high == pytest.approx(0.09 + stats.t.ppf(0.975, degrees) * np.sqrt(variance))
    without_rows = difference_interval((first, second), np.zeros((5, 5)))
    welch = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    assert (without_rows.low, without_rows.high) == (pytest.approx(welch.low), pytest.approx(welch.high))
    # Two runs: only the rows, with the variances of their scores in place of the covariances between seeds.
    runs = difference_interval(([0.8], [0.9]), np.array([[9.0, 5], [5, 7]]) * 1e-4)
    assert runs.high == pytest.approx(0.1 + 1.959964 * np.sqrt(6e-4))


@pytest.mark.parametrize("sets", [False, True], ids=["single-label", "multi-label"])
def test_the_covariance_of_the_accuracy_is_that_of_right_and_wrong_rows(sets: bool) -> None:
    seeds, labels = _seeds(3, sets=sets)
    metric = "subset_accuracy" if sets else "accuracy"
    covariance = row_covariance(seeds, labels, [metric], num_classes=CLASSES)[metric]
    right = np.stack([(rows == labels).reshape(ROWS, -1).all(-1) for rows in seeds])
    expected = np.cov(right, bias=True) / ROWS
    assert covariance == pytest.approx(expected, rel=1e-9)
    values, _ = scores_and_covariances(seeds, labels, [metric], CLASSES)
    assert values[:, 0] == pytest.approx(right.mean(axis=1))


def test_the_covariance_of_an_error_is_that_of_the_errors_of_rows() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=ROWS)
    shared = rng.normal(size=ROWS)
    models = [values + shared + rng.normal(size=ROWS) for _ in range(2)]
    metrics = ["mean_absolute_error", "pearson"]
    result = row_covariance(models, values, metrics, num_classes=1)
    expected = np.cov([np.abs(model - values) for model in models], bias=True) / ROWS
    assert result["mean_absolute_error"] == pytest.approx(expected, rel=1e-9)
    assert result["pearson"].shape == (2, 2)
    assert result["pearson"][0, 1] == result["pearson"][1, 0] > 0


def test_too_few_rows_and_undefined_values_have_no_covariance() -> None:
    labels = np.array([0, 1, 1])
    assert np.isnan(row_covariance([labels, labels], labels, ["accuracy"], num_classes=2)["accuracy"]).all()
    constant = np.ones(20)
    undefined = row_covariance([constant] * 2, constant, ["pearson"], num_classes=1)["pearson"]
    assert undefined.shape == (2, 2)
    assert np.isnan(undefined).all()


def test_every_metric_but_errors_has_a_range() -> None:
    names = {name for table in METRICS.values() for name in table}
    assert {name for name in names if metric_bounds(name)} == {name for name in names if not lower_is_better(name)}
