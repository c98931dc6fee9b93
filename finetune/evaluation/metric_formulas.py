"""The formulas of all metrics. Their names and descriptions are in `finetune.recipe.names.METRICS`.

Every classification metric is a function of `Counts`. The arrays of `Counts` may have a leading dimension, so that one
call computes a metric for many counts (influence.py).

Every value equals that of scikit-learn with `zero_division=0` (a ratio with a zero denominator is 0), or that of scipy
for correlations. A correlation of constant values is undefined: NaN here, null in JSON, "undefined" in messages.

    N rows, C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]


@dataclass(frozen=True)
class Counts:
    """The row counts from which classification metrics are computed, for one split or for several.

    Attributes:
        hits: rows of a class that were predicted as that class, (..., C).
        predicted: rows predicted as the class, (..., C).
        actual: rows of the class, (..., C).
        exact: rows whose label, or whose full set of labels, was predicted, (...,).
        rows: number of rows.
    """

    hits: Array
    predicted: Array
    actual: Array
    exact: Array
    rows: int


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Return the ratio, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0)


def precision(counts: Counts) -> Array:
    """Return hits / predicted per class, (..., C); 0 where nothing was predicted."""
    return _ratio(counts.hits, counts.predicted)


def recall(counts: Counts) -> Array:
    """Return hits / actual per class, (..., C); 0 where the class has no rows."""
    return _ratio(counts.hits, counts.actual)


def f1(counts: Counts) -> Array:
    """Return 2 hits / (predicted + actual) per class, (..., C); 0 where both are 0."""
    return _ratio(2 * counts.hits, counts.predicted + counts.actual)


def accuracy(counts: Counts) -> Array:
    """Return the share of rows whose label, or whose full set of labels, was predicted."""
    return counts.exact / counts.rows


def f1_macro(counts: Counts) -> Array:
    """Return the mean F1 of the classes that occur as a label or a prediction, as scikit-learn does for class ids."""
    return _ratio(f1(counts).sum(-1), ((counts.predicted + counts.actual) > 0).sum(-1))


def f1_macro_all_labels(counts: Counts) -> Array:
    """Return the mean F1 of all C labels, 0 for a label that never occurs, as scikit-learn does for 0/1 label sets."""
    means: Array = f1(counts).mean(-1)
    return means


def f1_micro(counts: Counts) -> Array:
    """Return the F1 of the counts summed over all classes. It equals accuracy if every row has one label."""
    return _ratio(2 * counts.hits.sum(-1), (counts.predicted + counts.actual).sum(-1))


def f1_weighted(counts: Counts) -> Array:
    """Return the mean F1 of the classes, weighted by their numbers of rows; 0 if no row has a label."""
    return _ratio((f1(counts) * counts.actual).sum(-1), counts.actual.sum(-1))


def matthews_correlation(counts: Counts) -> Array:
    """Return the Matthews correlation coefficient for C classes (Gorodkin 2004, eq. 8), 0 where it is undefined."""
    total = float(counts.rows)
    covariance = counts.exact * total - (counts.predicted * counts.actual).sum(-1)
    spread = (total**2 - (counts.predicted.astype(float) ** 2).sum(-1)) * (
        total**2 - (counts.actual.astype(float) ** 2).sum(-1)
    )
    return _ratio(covariance, np.sqrt(spread))


# Metric name -> formula. The names are those of finetune.recipe.names.METRICS.
SINGLE_LABEL: dict[str, Callable[[Counts], Array]] = {
    "accuracy": accuracy,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "f1_weighted": f1_weighted,
    "matthews_correlation": matthews_correlation,
}
MULTI_LABEL: dict[str, Callable[[Counts], Array]] = {
    "f1_micro": f1_micro,
    "f1_macro": f1_macro_all_labels,
    "f1_weighted": f1_weighted,
    "subset_accuracy": accuracy,
}
REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "mean_squared_error": lambda predicted, actual: float(np.mean((predicted - actual) ** 2)),
    "mean_absolute_error": lambda predicted, actual: float(np.mean(np.abs(predicted - actual))),
    "pearson": lambda predicted, actual: _correlation(stats.pearsonr, predicted, actual),
    "spearman": lambda predicted, actual: _correlation(stats.spearmanr, predicted, actual),
}


def _correlation(function: Callable[[Array, Array], Any], predicted: Array, actual: Array) -> float:
    """Return the correlation; NaN for a single row, or if all predictions or all labels are equal."""
    if len(actual) < 2 or np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return float("nan")
    return float(function(predicted, actual)[0])


def none_if_undefined(value: float) -> float | None:
    """Return the value, or None if it is NaN or infinite, because JSON has no such numbers."""
    return float(value) if np.isfinite(value) else None


def confusion_matrix(predictions: Array, references: Array, num_classes: int) -> Array:
    """Return the confusion matrix (C, C): number of rows with label i that were predicted as j."""
    flat = np.bincount(references * num_classes + predictions, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def counts_of_confusion(confusion: Array) -> Counts:
    """Return the counts of one confusion matrix (C, C)."""
    hits = confusion.diagonal()
    return Counts(hits, confusion.sum(0), confusion.sum(1), hits.sum(), int(confusion.sum()))


def counts_of_sets(predictions: Array, references: Array) -> Counts:
    """Return the counts of predicted 0/1 label sets (N, C) against the actual ones (N, C)."""
    exact = (predictions == references).all(-1).sum()
    return Counts((predictions * references).sum(0), predictions.sum(0), references.sum(0), exact, len(references))
