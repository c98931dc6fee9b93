"""Several models on the same rows: their scores, the covariance of the scores, and intervals of differences.

What makes a sample of rows easy or hard for both models cancels out of their difference. Its variance is that of the
difference of the influences of a row on both scores (influence.py).

    N rows, C classes, K kinds of rows, S models, X values
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetune.evaluation.influence import derivatives, pearson_influence, spearman_influence
from finetune.evaluation.intervals import interval_note
from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Counts,
    confusion_matrix,
    counts_of_confusion,
    counts_of_sets,
    none_if_undefined,
)
from finetune.runs.results import MetricValue

Array = NDArray[Any]
_LEVEL = 0.975  # quantile of a two-sided 95 % interval
_BLOCK = 5_000_000  # maximum number of influences, or of label sets times labels, in memory


def paired_differences(
    pair: tuple[Array, Array], references: Array, metrics: Sequence[str], *, num_classes: int
) -> dict[str, MetricValue]:
    """Return, by metric, second minus first with its 95 % interval, or with a note that says why it has none.

    Args:
        pair: the predictions of the first and the second model: class ids (N,), 0/1 label sets (N, C), or values (N,).
        references: the labels in the same form.
        metrics: names of metrics of the problem type.
    """
    scores, covariances = scores_and_covariances(pair, references, metrics, num_classes)
    rows, few = len(references), bool(interval_note(len(references)))
    width = np.nan if few else stats.t.ppf(_LEVEL, rows - 1) * np.sqrt(rows / (rows - 1))
    results = {}
    for name, (first, second), covariance in zip(metrics, scores.T, covariances, strict=True):
        value = none_if_undefined(second - first)
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        if value is None or few:
            results[name] = MetricValue(value)
        elif not variance > 1e-15:  # also NaN
            results[name] = MetricValue(value, note="no interval: every row has the same influence on both scores")
        else:
            half = float(width * variance**0.5)
            results[name] = MetricValue(value, value - half, value + half)
    return results


def scores_and_covariances(
    models: Sequence[Array],
    references: Array,
    metrics: Sequence[str],
    num_classes: int,
    per_class: Sequence[Callable[[Counts], Array]] = (),
) -> tuple[Array, Array]:
    """Return the values of every model, (S, X), and their covariances over samples of rows, (X, S, S).

    Undefined values, and covariances of undefined values, are NaN.

    Args:
        models: the predictions of each model: class ids (N,), 0/1 label sets (N, C), or values (N,).
        references: the labels in the same form.
        metrics: names of metrics of the problem type.
        per_class: in classification, functions that return one value per class, after the values of the metrics.
    """
    if references.dtype.kind == "f":
        return _regression(models, references.astype(float), metrics)
    formulas = SINGLE_LABEL if references.ndim == 1 else MULTI_LABEL
    functions = [*(formulas[name] for name in metrics), *per_class]
    totals = [_counts(model, references, num_classes) for model in models]
    values = [np.concatenate([np.reshape(function(total), -1) for function in functions]) for total in totals]
    slopes = [[derivatives(function, total) for function in functions] for total in totals]
    of_counts = [np.concatenate([counts for counts, _ in model], axis=1) for model in slopes]  # (3 C + 1, X) each
    of_rows = [np.concatenate([any_row for _, any_row in model]) for model in slopes]  # (X,) each
    covariances = np.zeros((len(values[0]), len(models), len(models)))
    for kinds, sizes in _kinds(models, references, num_classes, len(values[0])):
        influences = np.stack(
            [rows @ of_count + of_row for rows, of_count, of_row in zip(kinds, of_counts, of_rows, strict=True)]
        ).transpose(2, 0, 1)  # (X, S, K)
        covariances += (influences * sizes) @ influences.transpose(0, 2, 1)
    return np.array(values), covariances / len(references) ** 2


def _counts(predictions: Array, references: Array, num_classes: int) -> Counts:
    """Return the counts of one model."""
    if references.ndim == 1:
        return counts_of_confusion(confusion_matrix(predictions, references, num_classes))
    return counts_of_sets(predictions, references)


def _kinds(
    models: Sequence[Array], references: Array, num_classes: int, num_values: int
) -> Iterator[tuple[list[Array], Array]]:
    """Yield, in blocks, what a row of each kind adds to the counts of each model, (K, 3 C + 1), and their numbers (K,).

    A kind is a combination of the label and the predictions of all models.
    """
    rows = np.stack([references, *models], axis=1)  # (N, 1 + S) or (N, 1 + S, C)
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)
    block = max(1, _BLOCK // (kinds.shape[1] * max(3 * num_classes, num_values)))
    for start in range(0, len(kinds), block):
        some = kinds[start : start + block]
        sets = some if some.ndim == 3 else np.eye(num_classes)[some]  # (K, 1 + S, C)
        actual, predicted = sets[:, 0], np.moveaxis(sets[:, 1:], 1, 0)
        exact = [(model == actual).all(-1, keepdims=True) for model in predicted]
        yield (
            [
                np.concatenate([model * actual, model, actual, right], axis=1)
                for model, right in zip(predicted, exact, strict=True)
            ],
            sizes[start : start + block],
        )


def _regression(models: Sequence[Array], references: Array, metrics: Sequence[str]) -> tuple[Array, Array]:
    """Return the values, (S, X), and the covariances, (X, S, S), of models that predict values (N,)."""
    predicted = [model.astype(float) for model in models]
    values = np.array([[REGRESSION[name](model, references) for name in metrics] for model in predicted])
    covariances = np.full((len(metrics), len(models), len(models)), np.nan)
    for index, name in enumerate(metrics):
        if np.isfinite(values[:, index]).all():
            influences = np.array([_INFLUENCES[name](model, references) for model in predicted])  # (S, N)
            covariances[index] = influences @ influences.T / len(references) ** 2
    return values, covariances


def _centered(values: Array) -> Array:
    centered: Array = values - values.mean()
    return centered


_INFLUENCES: dict[str, Callable[[Array, Array], Array]] = {
    "mean_squared_error": lambda predicted, actual: _centered((predicted - actual) ** 2),
    "mean_absolute_error": lambda predicted, actual: _centered(np.abs(predicted - actual)),
    "pearson": pearson_influence,
    "spearman": spearman_influence,
}
