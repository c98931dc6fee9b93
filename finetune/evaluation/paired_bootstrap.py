"""Bootstrap of several models on the same rows, and the intervals of the difference between two models.

All models are scored on the same resamples, so that what makes a resample easy or hard cancels out of a difference.

N rows, C classes, K kinds of rows, S models, R resamples, X metric values
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from finetune.evaluation.bootstrap import (
    Array,
    counts_of_draws,
    draw_kinds,
    evaluate_blocks,
    interval_note,
    percentile_bounds,
    regression_resamples,
    total_counts,
)
from finetune.evaluation.metric_formulas import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Counts, none_if_undefined
from finetune.runs.results import MetricValue


def paired_differences(
    pair: tuple[Array, Array],
    references: Array,
    metrics: Sequence[str],
    *,
    num_classes: int,
    samples: int,
    seed: int,
) -> dict[str, MetricValue]:
    """Return, by metric, second minus first with its 95 % confidence interval; None without one.

    Args:
        pair: the predictions of the first and the second model: class ids (N,), 0/1 label sets (N, C), or values (N,).
        references: the labels in the same form.
        metrics: names of metrics of the problem type.
        samples: number of resamples.
    """
    first, second = model_scores(pair, references, metrics, num_classes)
    values = [none_if_undefined(value) for value in second - first]
    if interval_note(len(references)):
        return {name: MetricValue(value) for name, value in zip(metrics, values, strict=True)}
    resampled = resampled_scores(pair, references, metrics, num_classes=num_classes, samples=samples, seed=seed)
    bounds = percentile_bounds(resampled[:, 1] - resampled[:, 0])
    return {name: MetricValue(value, *bound) for name, value, bound in zip(metrics, values, bounds, strict=True)}


def model_scores(models: Sequence[Array], references: Array, metrics: Sequence[str], num_classes: int) -> Array:
    """Return every metric of every model, (S, X); NaN where it is undefined.

    Args:
        models: the predictions of each model: class ids (N,), 0/1 label sets (N, C), or values (N,).
        references: the labels in the same form.
        metrics: names of metrics of the problem type.
    """
    if references.dtype.kind == "f":
        return np.array([[REGRESSION[name](model, references) for name in metrics] for model in models])
    return model_values(models, references, _formulas(references, metrics), num_classes)


def model_values(
    models: Sequence[Array], references: Array, functions: Sequence[Callable[[Counts], Array]], num_classes: int
) -> Array:
    """Return the values of functions of the counts for every model, (S, X); the arguments of `resampled_values`."""
    kinds, sizes = _kinds(models, references, num_classes)
    totals = [total_counts(counts, sizes) for counts in kinds]
    return np.array([np.concatenate([np.reshape(function(total), -1) for function in functions]) for total in totals])


def resampled_scores(
    models: Sequence[Array],
    references: Array,
    metrics: Sequence[str],
    *,
    num_classes: int,
    samples: int,
    seed: int,
) -> Array:
    """Return every metric of every model on the same resamples of the rows, (R, S, X); the arguments of `model_scores`.

    Args:
        samples: number of resamples R.
    """
    if references.dtype.kind != "f":
        functions = _formulas(references, metrics)
        return resampled_values(models, references, functions, num_classes=num_classes, samples=samples, seed=seed)
    labels = references.astype(float)
    resamples = [regression_resamples(model.astype(float), labels, samples, seed) for model in models]
    return np.array(
        [[[scores[name] for name in metrics] for scores in resample] for resample in zip(*resamples, strict=True)]
    )


def resampled_values(
    models: Sequence[Array],
    references: Array,
    functions: Sequence[Callable[[Counts], Array]],
    *,
    num_classes: int,
    samples: int,
    seed: int,
) -> Array:
    """Return the values of functions of the counts on the same resamples for every model, (R, S, X).

    Args:
        functions: each returns one value, or one value per class.
    """
    kinds, sizes = _kinds(models, references, num_classes)
    blocks = [
        [evaluate_blocks(iter([counts_of_draws(drawn, counts)]), list(functions)) for counts in kinds]
        for drawn in draw_kinds(sizes, samples, seed)
    ]
    return np.concatenate([np.stack(block, axis=1) for block in blocks])


def _formulas(references: Array, metrics: Sequence[str]) -> list[Callable[[Counts], Array]]:
    """Return the formulas of the metrics for class ids (N,) or 0/1 label sets (N, C)."""
    formulas = SINGLE_LABEL if references.ndim == 1 else MULTI_LABEL
    return [formulas[name] for name in metrics]


def _kinds(models: Sequence[Array], references: Array, num_classes: int) -> tuple[list[Counts], Array]:
    """Return the counts of one row of each kind for every model, and the number of rows of each kind.

    A kind is a combination of the label and the predictions of all models.
    """
    rows = np.stack([references, *models], axis=1)  # (N, 1 + S) or (N, 1 + S, C)
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)
    sets = kinds if kinds.ndim == 3 else np.eye(num_classes)[kinds]  # (K, 1 + S, C)
    actual, predicted = sets[:, 0], np.moveaxis(sets[:, 1:], 1, 0)
    return [Counts(model * actual, model, actual, (model == actual).all(-1), 1) for model in predicted], sizes
