"""Metrics that work offline.

`evaluate.load("accuracy")` fetches a script from the network; the `evaluate.Metric` subclasses here hold
their formula themselves. Every classification metric is a function of `Counts`, which has a free
leading shape, so that the thousands of resamples of a bootstrap (bootstrap.py) are computed at once.

Every value is that of scikit-learn with `zero_division=0` (of scipy for correlations): a ratio without a denominator
is 0. A correlation without spread has no value at all: it is NaN here, null in files and "undefined" in print.

    N rows, C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]


@dataclass(frozen=True)
class Counts:
    """What classification metrics are made of; the leading shape is free.

    Attributes:
        hits: rows of a class that were predicted as that class, (..., C).
        predicted: rows predicted as the class, (..., C).
        actual: rows of the class, (..., C).
        exact: rows predicted right as a whole, (...,).
        rows: their number.
    """

    hits: Array
    predicted: Array
    actual: Array
    exact: Array
    rows: int


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)


def precision(counts: Counts) -> Array:
    """Return hits / predicted per class, (..., C); 0 where nothing was predicted."""
    return _ratio(counts.hits, counts.predicted)


def recall(counts: Counts) -> Array:
    """Return hits / actual per class, (..., C); 0 where there is no row."""
    return _ratio(counts.hits, counts.actual)


def f1(counts: Counts) -> Array:
    """Return 2 hits / (predicted + actual) per class, (..., C); 0 where both are 0."""
    return _ratio(2 * counts.hits, counts.predicted + counts.actual)


def accuracy(counts: Counts) -> Array:
    """Return the share of rows that are right as a whole."""
    return counts.exact / counts.rows


def f1_macro(counts: Counts) -> Array:
    """Return the mean F1 of the classes that occur as label or prediction: scikit-learn's for single-label ids."""
    return _ratio(f1(counts).sum(-1), ((counts.predicted + counts.actual) > 0).sum(-1))


def f1_macro_of_all(counts: Counts) -> Array:
    """Return the mean F1 of all C labels, 0 for one that never occurs: scikit-learn's for 0/1 sets."""
    means: Array = f1(counts).mean(-1)
    return means


def f1_micro(counts: Counts) -> Array:
    """Return F1 of the counts summed over classes; equals accuracy where each row has one label."""
    return _ratio(2 * counts.hits.sum(-1), (counts.predicted + counts.actual).sum(-1))


def f1_weighted(counts: Counts) -> Array:
    """Return the mean F1 of the classes, weighted by their rows; 0 where no row has a label."""
    return _ratio((f1(counts) * counts.actual).sum(-1), counts.actual.sum(-1))


def matthews_correlation(counts: Counts) -> Array:
    """Return Matthews' coefficient for C classes (Gorodkin 2004, eq. 8), 0 where it is undefined."""
    total = float(counts.rows)
    covariance = counts.exact * total - (counts.predicted * counts.actual).sum(-1)
    spread = (total**2 - (counts.predicted.astype(float) ** 2).sum(-1)) * (
        total**2 - (counts.actual.astype(float) ** 2).sum(-1)
    )
    return _ratio(covariance, np.sqrt(spread))


CLASSIFICATION: dict[str, Callable[[Counts], Array]] = {
    "accuracy": accuracy,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "f1_weighted": f1_weighted,
    "matthews_correlation": matthews_correlation,
}
MULTI_LABEL: dict[str, Callable[[Counts], Array]] = {
    "f1_micro": f1_micro,
    "f1_macro": f1_macro_of_all,
    "f1_weighted": f1_weighted,
    "subset_accuracy": accuracy,
}
REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "mean_squared_error": lambda predicted, actual: float(np.mean((predicted - actual) ** 2)),
    "mean_absolute_error": lambda predicted, actual: float(np.mean(np.abs(predicted - actual))),
    "pearson": lambda predicted, actual: _correlation(stats.pearsonr, predicted, actual),
    "spearman": lambda predicted, actual: _correlation(stats.spearmanr, predicted, actual),
}
LOWER_IS_BETTER = frozenset({"loss", "mean_squared_error", "mean_absolute_error"})


def _correlation(function: Callable[[Array, Array], Any], predicted: Array, actual: Array) -> float:
    """Return the correlation, NaN where it is undefined: one row, or all predictions or all labels are the same."""
    if len(actual) < 2 or np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return float("nan")
    return float(function(predicted, actual)[0])


def defined(value: float) -> float | None:
    """Return the value for a result that people and JSON read: None where it is undefined (NaN or infinite)."""
    return float(value) if np.isfinite(value) else None


def confusion_matrix(predictions: Array, references: Array, num_classes: int) -> Array:
    """Return (C, C): rows of label i predicted as j."""
    flat = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def counts_of_confusion(confusion: Array) -> Counts:
    """Return the counts of one confusion matrix (C, C)."""
    hits = confusion.diagonal()
    return Counts(hits, confusion.sum(0), confusion.sum(1), hits.sum(), int(confusion.sum()))


def counts_of_sets(predictions: Array, references: Array) -> Counts:
    """Return the counts of multi-label predictions (N, C) against references (N, C), both 0 or 1."""
    exact = (predictions == references).all(-1).sum()
    return Counts((predictions * references).sum(0), predictions.sum(0), references.sum(0), exact, len(references))


class _OfflineMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate.Metric` whose formula is here; subclasses say of which features and how."""

    features: datasets.Features
    description: str

    def __init__(self, num_classes: int = 0) -> None:
        self.num_classes = num_classes
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions, references",
            features=self.features,
        )


class ClassificationMetrics(_OfflineMetric):
    """Accuracy, F1 (macro, micro, weighted) and Matthews' coefficient of predicted ids (N,)."""

    description = "Metrics of single-label classification."
    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        counts = counts_of_confusion(
            confusion_matrix(np.asarray(predictions), np.asarray(references), self.num_classes)
        )
        return {name: float(metric(counts)) for name, metric in CLASSIFICATION.items()}


class MultiLabelMetrics(_OfflineMetric):
    """F1 (micro, macro, weighted) and subset accuracy of predicted label sets (N, C)."""

    description = "Metrics of multi-label classification."
    features = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("int64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
    )

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        counts = counts_of_sets(np.asarray(predictions), np.asarray(references))
        return {name: float(metric(counts)) for name, metric in MULTI_LABEL.items()}


class RegressionMetrics(_OfflineMetric):
    """Squared and absolute error, Pearson's and Spearman's correlation of predicted values (N,)."""

    description = "Metrics of regression."
    features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        predicted, actual = np.asarray(predictions), np.asarray(references)
        return {name: metric(predicted, actual) for name, metric in REGRESSION.items()}


OFFLINE_METRICS: dict[str, type[_OfflineMetric]] = {
    "single_label_classification": ClassificationMetrics,
    "multi_label_classification": MultiLabelMetrics,
    "regression": RegressionMetrics,
}


def compute_metrics(predictions: Array, references: Array, problem_type: str, num_classes: int) -> dict[str, float]:
    """Return every metric of the problem type, NaN where it is undefined.

    Args:
        predictions: ids (N,), 0/1 sets (N, C) or values (N,), by problem type.
        references: the same of the labels.
    """
    metric = OFFLINE_METRICS[problem_type](num_classes)
    values: dict[str, float] = metric.compute(predictions=predictions, references=references)
    return values
