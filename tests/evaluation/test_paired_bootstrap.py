from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation.paired_bootstrap import paired_differences

ROWS, CLASSES = 200, 3


def _predictions(rng: np.random.Generator, labels: np.ndarray, wrong: float) -> np.ndarray:
    """Return the labels, with a share of them replaced at random."""
    other = rng.integers(0, CLASSES if labels.ndim == 1 else 2, labels.shape)
    return np.where(rng.random(labels.shape) < wrong, other, labels)


def test_the_interval_is_that_of_resampled_rows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    first = _predictions(rng, labels, 0.3)
    second = _predictions(rng, first, 0.1)
    result = paired_differences(
        (first, second), labels, ["accuracy", "f1_macro"], num_classes=CLASSES, samples=4000, seed=1
    )
    values = {
        "accuracy": lambda predicted, rows: (predicted[rows] == labels[rows]).mean(),
        "f1_macro": lambda predicted, rows: f1_score(labels[rows], predicted[rows], average="macro", zero_division=0),
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
    result = paired_differences((first, second), labels, ["accuracy"], num_classes=2, samples=1000, seed=0)["accuracy"]
    assert result.value == 0
    assert result.low is not None
    assert result.high is not None
    # The difference has the variance of 20 rows of plus or minus one: a standard error of 0.0447.
    assert result.low == pytest.approx(-0.0877, abs=0.02)
    assert result.high == pytest.approx(0.0877, abs=0.02)
    same = paired_differences((first, first), labels, ["accuracy"], num_classes=2, samples=1000, seed=0)["accuracy"]
    assert (same.value, same.low, same.high) == (0, None, None)


def test_multi_label_and_regression() -> None:
    rng = np.random.default_rng(2)
    sets = rng.integers(0, 2, (ROWS, CLASSES))
    first, second = _predictions(rng, sets, 0.4), _predictions(rng, sets, 0.05)
    micro = paired_differences((first, second), sets, ["f1_micro"], num_classes=CLASSES, samples=500, seed=0)[
        "f1_micro"
    ]
    scores = [f1_score(sets, predicted, average="micro") for predicted in (first, second)]
    assert micro.value == pytest.approx(scores[1] - scores[0])
    assert 0 < micro.low < micro.value < micro.high  # type: ignore[operator]
    values = rng.normal(size=ROWS)
    noisy = values + rng.normal(size=ROWS)
    error = paired_differences(
        (noisy, values + 0.1), values, ["mean_squared_error"], num_classes=1, samples=500, seed=0
    )["mean_squared_error"]
    assert error.value == pytest.approx(0.01 - np.mean((noisy - values) ** 2))
    assert error.low < error.value < error.high < 0  # type: ignore[operator]


def test_few_rows_have_no_interval() -> None:
    labels = np.array([0, 1, 1])
    result = paired_differences((labels, 1 - labels), labels, ["accuracy"], num_classes=2, samples=10, seed=0)[
        "accuracy"
    ]
    assert (result.value, result.low, result.high) == (-1, None, None)
    values = labels.astype(float)
    result = paired_differences((values, values), values, ["mean_absolute_error"], num_classes=1, samples=10, seed=0)[
        "mean_absolute_error"
    ]
    assert (result.value, result.low, result.high) == (0, None, None)
