"""Bootstrap confidence intervals: finetune/evaluation/bootstrap.py."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation import bootstrap
from finetune.evaluation.bootstrap import classification_intervals, interval_note, regression_intervals
from finetune.evaluation.metric_formulas import REGRESSION
from finetune.runs.results import MetricValue

NAMES = ["a", "b", "c"]


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    actual = rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    return np.where(rng.random(200) < 0.75, actual, rng.integers(0, 3, 200)), actual


def test_intervals_equal_those_of_a_bootstrap_over_rows(rows: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = rows
    metrics, per_class = classification_intervals(predicted, actual, NAMES, samples=4000, seed=0)
    rng = np.random.default_rng(1)
    resamples = [rng.integers(0, 200, 200) for _ in range(1000)]
    naive = {
        "accuracy": [np.mean(predicted[d] == actual[d]) for d in resamples],
        "f1_macro": [f1_score(actual[d], predicted[d], average="macro") for d in resamples],
    }
    for name, values in naive.items():
        low, high = np.percentile(values, [2.5, 97.5])
        cell = metrics[name]
        assert cell.low is not None
        assert cell.high is not None
        # Both bounds are estimates: their standard deviation over 1000 resamples is 0.004 here.
        assert (cell.low, cell.high) == pytest.approx((low, high), abs=0.012)
        assert cell.value is not None
        assert cell.low < cell.value < cell.high
    assert [row.support for row in per_class] == np.bincount(actual).tolist()


def test_multi_label_intervals_contain_the_value() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 2, (300, 3))
    predicted = np.where(rng.random((300, 3)) < 0.8, actual, 1 - actual)
    metrics, per_class = classification_intervals(predicted, actual, NAMES, samples=500, seed=0)
    assert [row.support for row in per_class] == actual.sum(0).tolist()
    for cell in metrics.values():
        assert cell.low is not None
        assert cell.high is not None
        assert cell.value is not None
        assert cell.low < cell.value < cell.high


def test_coverage_is_near_95_percent() -> None:
    rng = np.random.default_rng(0)
    hits, trials = 0, 200
    for trial in range(trials):
        actual = np.zeros(150, dtype=int)
        predicted = (rng.random(150) > 0.8).astype(int)  # accuracy is 0.8
        cell = classification_intervals(predicted, actual, ["a", "b"], samples=300, seed=trial)[0]["accuracy"]
        assert cell.low is not None
        assert cell.high is not None
        hits += cell.low <= 0.8 <= cell.high
    assert 0.89 <= hits / trials <= 0.99  # 0.95 with a standard error of 0.015, and n = 150 is not infinite


def test_the_same_seed_gives_the_same_interval(rows: tuple[np.ndarray, np.ndarray]) -> None:
    first, same, other = (classification_intervals(*rows, NAMES, samples=200, seed=seed)[0] for seed in (1, 1, 2))
    assert first == same != other


def test_too_few_rows_or_constant_resamples_have_no_interval() -> None:
    four, _ = classification_intervals(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), ["a", "b"], samples=100, seed=0)
    assert four["accuracy"].low is None
    assert interval_note(4) == "4 rows are too few for bootstrap intervals (at least 10)"
    perfect, _ = classification_intervals(np.arange(20) % 2, np.arange(20) % 2, ["a", "b"], samples=100, seed=0)
    assert perfect["accuracy"].high is None
    assert interval_note(20) == ""


@pytest.mark.parametrize("ties", [False, True])
def test_regression_intervals_equal_those_of_a_bootstrap_that_draws_rows(ties: bool) -> None:
    rng = np.random.default_rng(0)
    actual = rng.normal(size=60)
    predicted = actual + rng.normal(size=60)
    if ties:
        actual, predicted = np.round(actual), np.round(predicted)
    metrics = regression_intervals(predicted, actual, samples=100, seed=4)
    rng = np.random.default_rng(4)
    resamples = [rng.integers(0, 60, size=60) for _ in range(100)]
    for name, metric in REGRESSION.items():
        bounds = np.percentile([metric(predicted[rows], actual[rows]) for rows in resamples], [2.5, 97.5])
        assert (metrics[name].low, metrics[name].high) == pytest.approx(tuple(bounds), rel=1e-9)  # measured 1e-15


def test_resamples_with_constant_values_are_skipped() -> None:
    actual = np.array([1.0] + [0.1] * 11)
    predicted = np.arange(12) / 10
    metrics = regression_intervals(predicted, actual, samples=200, seed=0)["spearman"]
    rng = np.random.default_rng(0)
    resamples = [rng.integers(0, 12, size=12) for _ in range(200)]
    values = [REGRESSION["spearman"](predicted[rows], actual[rows]) for rows in resamples]
    assert sum(np.isnan(values)) == sum(0 not in rows for rows in resamples) > 20  # these would divide by zero
    bounds = np.percentile([value for value in values if not np.isnan(value)], [2.5, 97.5])
    assert (metrics.low, metrics.high) == pytest.approx(tuple(bounds), abs=1e-12)
    assert bounds[1] < 0  # if undefined values counted as 0, the upper bound would be 0


def test_a_metric_without_a_fast_formula_is_computed_on_the_resampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, actual = np.random.default_rng(0).normal(size=(2, 30))
    expected = regression_intervals(predicted, actual, samples=150, seed=0)
    table = {**REGRESSION, "squared_error": lambda x, y: float(np.mean((x - y) ** 2))}
    monkeypatch.setattr(bootstrap, "REGRESSION", table)
    metrics = regression_intervals(predicted, actual, samples=150, seed=0)
    slow, fast = metrics.pop("squared_error"), metrics["mean_squared_error"]
    assert (slow.value, slow.low, slow.high) == pytest.approx((fast.value, fast.low, fast.high), rel=1e-12)
    assert metrics == expected


@pytest.mark.parametrize("rows", [4, 20])
def test_an_undefined_metric_has_neither_value_nor_interval(rows: int) -> None:
    metrics = regression_intervals(np.arange(rows) / 10, np.ones(rows), samples=100, seed=0)
    assert metrics["pearson"] == metrics["spearman"] == MetricValue(None)
    assert metrics["mean_squared_error"].value is not None


def test_the_interval_belongs_to_the_same_definition_as_the_value() -> None:
    # The third label never occurs: its F1 is 0 in multi-label macro F1, for the value and for every resample.
    actual = np.tile([[1, 0, 0], [0, 1, 0]], (20, 1))
    predicted = np.where(np.random.default_rng(0).random(actual.shape) < 0.1, 1 - actual, actual) * [1, 1, 0]
    metrics, _ = classification_intervals(predicted, actual, NAMES, samples=200, seed=0)
    cell = metrics["f1_macro"]
    assert cell.value == pytest.approx(f1_score(actual, predicted, average="macro", zero_division=0.0))
    assert cell.value is not None
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low < cell.value < cell.high <= 2 / 3


def test_regression_intervals_need_little_memory() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    regression_intervals(values, values + 1, samples=100, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * values.nbytes  # a few columns; measured 13


def test_regression_intervals() -> None:
    rng = np.random.default_rng(0)
    actual = rng.normal(size=100)
    predicted = actual + rng.normal(size=100)
    metrics = regression_intervals(predicted, actual, samples=200, seed=0)
    assert set(metrics) == {"mean_squared_error", "mean_absolute_error", "pearson", "spearman"}
    for cell in metrics.values():
        assert cell.low is not None
        assert cell.high is not None
        assert cell.value is not None
        assert cell.low < cell.value < cell.high
    assert regression_intervals(predicted[:4], actual[:4], samples=200, seed=0)["pearson"].low is None


def test_an_outlier_does_not_reduce_precision() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=40)
    references = predictions + rng.normal(size=40)
    predictions[0] = references[0] = 1e9
    metrics = regression_intervals(predictions, references, samples=500, seed=1)["pearson"]
    assert metrics.low is not None
    assert metrics.high is not None
    resamples = rng.integers(1, 40, size=(300, 40))
    without = [np.corrcoef(predictions[rows], references[rows])[0, 1] for rows in resamples]
    # A third of the resamples lack the outlier and have the correlation of the other rows.
    assert np.percentile(without, 1) - 0.1 < metrics.low < np.percentile(without, 60)
    assert metrics.high <= 1.0
