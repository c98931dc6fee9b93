"""The influence of rows on metrics: finetune/evaluation/influence.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from finetune.evaluation.influence import influence_on, pearson_influence, spearman_influence
from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    confusion_matrix,
    counts_of_confusion,
    counts_of_sets,
    matthews_correlation,
)

ROWS, CLASSES = 40, 4
COPIES = 100  # of all rows; one row more is then a small change


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, CLASSES, ROWS)
    return np.where(rng.random(ROWS) < 0.7, actual, rng.integers(0, CLASSES, ROWS)), actual


def by_adding_rows(value: Callable[[np.ndarray], float]) -> np.ndarray:
    """Return the change of a metric if one row is added to many copies of all rows, per share of a row."""
    everything = np.tile(np.arange(ROWS), COPIES)
    whole = value(everything)
    return np.array([(value(np.append(everything, row)) - whole) * (len(everything) + 1) for row in range(ROWS)])


@pytest.mark.parametrize("name", SINGLE_LABEL)
def test_influence_on_metrics_of_labels(labels: tuple[np.ndarray, np.ndarray], name: str) -> None:
    predicted, actual = labels
    influence = influence_on(SINGLE_LABEL[name], counts_of_confusion(confusion_matrix(predicted, actual, CLASSES)))
    expected = by_adding_rows(
        lambda rows: float(
            SINGLE_LABEL[name](counts_of_confusion(confusion_matrix(predicted[rows], actual[rows], CLASSES)))
        )
    )
    # The second derivative times 1 / 4,000 remains.
    assert influence.of_labels()[actual, predicted] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_influence_on_metrics_of_label_sets(name: str) -> None:
    rng = np.random.default_rng(1)
    actual = rng.integers(0, 2, (ROWS, 3))
    predicted = np.where(rng.random(actual.shape) < 0.8, actual, 1 - actual)
    actual[:, 2] = predicted[:, 2] = 0  # never occurs
    influence = influence_on(MULTI_LABEL[name], counts_of_sets(predicted, actual))
    expected = by_adding_rows(lambda rows: float(MULTI_LABEL[name](counts_of_sets(predicted[rows], actual[rows]))))
    assert influence.of_sets(predicted, actual) == pytest.approx(expected, abs=0.005)
    assert influence.of_sets(predicted, actual).mean() == pytest.approx(0, abs=1e-9)


def test_the_matthews_correlation_of_constant_predictions_has_no_influence() -> None:
    total = counts_of_confusion(np.array([[5, 0], [3, 0]]))
    assert not influence_on(matthews_correlation, total).of_labels().any()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("name", "influence"), [("pearson", pearson_influence), ("spearman", spearman_influence)])
def test_influence_on_correlations(
    name: str, influence: Callable[[np.ndarray, np.ndarray], np.ndarray], ties: bool
) -> None:
    x, y = np.random.default_rng(2).normal(size=(2, ROWS))
    y = y + x
    if ties:
        x, y = np.round(x), np.round(2 * y)
    expected = by_adding_rows(lambda rows: REGRESSION[name](x[rows], y[rows]))
    assert influence(x, y) == pytest.approx(expected, abs=0.01)
    assert influence(x, y).mean() == pytest.approx(0, abs=1e-12)
