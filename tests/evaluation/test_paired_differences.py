from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation.metric_formulas import confusion_matrix, counts_of_confusion, f1_macro
from finetune.evaluation.paired_differences import paired_differences
from finetune.runs.results import MetricValue

ROWS, CLASSES = 200, 3


def _predictions(rng: np.random.Generator, labels: np.ndarray, wrong: float) -> np.ndarray:
    """Return the labels, with a share of them replaced at random."""
    other = rng.integers(0, CLASSES if labels.ndim == 1 else 2, labels.shape)
    return np.where(rng.random(labels.shape) < wrong, other, labels)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(f1_macro(counts_of_confusion(confusion_matrix(predicted, labels, CLASSES))))


def test_the_interval_is_that_of_resampled_rows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    first = _predictions(rng, labels, 0.3)
    second = _predictions(rng, first, 0.1)
    result = paired_differences((first, second), labels, ["accuracy", "f1_macro"], num_classes=CLASSES)
    values = {
        "accuracy": lambda predicted, rows: (predicted[rows] == labels[rows]).mean(),
        "f1_macro": lambda predicted, rows: macro_f1(predicted[rows], labels[rows]),
    }
    everything = np.arange(ROWS)
    for name, value in values.items():
        assert result[name].value == pytest.approx(value(second, everything) - value(first, everything))
        draws = (rng.integers(0, ROWS, ROWS) for _ in range(300))
        expected = np.percentile([value(second, rows) - value(first, rows) for rows in draws], [2.5, 97.5])
        # 300 resamples: the percentiles have a standard error of about 0.0025.
        assert np.abs(np.array([result[name].low, result[name].high]) - expected).max() < 0.012


def test_equal_errors_on_different_rows_are_not_equal_models() -> None:
    labels = np.zeros(100, int)
    first, second = labels.copy(), labels.copy()
    first[:10], second[10:20] = 1, 1
    result = paired_differences((first, second), labels, ["accuracy"], num_classes=2)["accuracy"]
    assert result.value == 0
    assert result.low is not None
    assert result.high is not None
    # The difference has the variance of 20 rows of plus or minus one, and the t distribution 99 degrees of freedom.
    half = 1.984217 * np.sqrt(20 / 99) / 10
    assert (result.low, result.high) == pytest.approx((-half, half))
    same = paired_differences((first, first), labels, ["accuracy"], num_classes=2)["accuracy"]
    assert same == MetricValue(0.0, note="no interval: every row has the same influence on both scores")


def test_the_difference_from_constant_predictions_has_an_interval() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    model = np.where(rng.random(60) < 0.8, labels, 1 - labels)
    result = paired_differences((np.zeros(60, int), model), labels, ["matthews_correlation"], num_classes=2)
    cell = result["matthews_correlation"]
    assert cell.low is not None
    assert cell.value is not None
    assert 0 < cell.low < cell.value


def test_multi_label_and_regression() -> None:
    rng = np.random.default_rng(2)
    sets = rng.integers(0, 2, (ROWS, CLASSES))
    first, second = _predictions(rng, sets, 0.4), _predictions(rng, sets, 0.05)
    micro = paired_differences((first, second), sets, ["f1_micro"], num_classes=CLASSES)["f1_micro"]
    scores = [f1_score(sets, predicted, average="micro") for predicted in (first, second)]
    assert micro.value == pytest.approx(scores[1] - scores[0])
    assert 0 < micro.low < micro.value < micro.high  # type: ignore[operator]
    values = rng.normal(size=ROWS)
    noisy = values + rng.normal(size=ROWS)
    error = paired_differences((noisy, values + 0.1), values, ["mean_squared_error"], num_classes=1)[
        "mean_squared_error"
    ]
    assert error.value == pytest.approx(0.01 - np.mean((noisy - values) ** 2))
    assert error.low < error.value < error.high < 0  # type: ignore[operator]


def test_few_rows_have_no_interval() -> None:
    labels = np.array([0, 1, 1])
    result = paired_differences((labels, 1 - labels), labels, ["accuracy"], num_classes=2)["accuracy"]
    assert (result.value, result.low, result.high) == (-1, None, None)
    values = labels.astype(float)
    result = paired_differences((values, values), values, ["mean_absolute_error"], num_classes=1)["mean_absolute_error"]
    assert (result.value, result.low, result.high) == (0, None, None)
