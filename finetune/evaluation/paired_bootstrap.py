"""Bootstrap intervals of the difference between two models on the same rows.

Both models are scored on the same resamples, so that what makes a resample easy or hard cancels out.

N rows, C classes, K kinds of rows
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.evaluation.bootstrap import (
    Array,
    evaluate_blocks,
    interval_note,
    percentile_bounds,
    regression_resamples,
    resample_counts,
    total_counts,
)
from finetune.evaluation.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Counts, none_if_undefined
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
    if references.dtype.kind == "f":
        return _regression_differences(pair, references, metrics, samples, seed)
    formulas = SINGLE_LABEL if references.ndim == 1 else MULTI_LABEL
    functions = [formulas[name] for name in metrics]
    kinds, sizes = _kinds(np.stack([references, *pair], axis=1), num_classes)
    totals = [total_counts(counts, sizes) for counts in kinds]
    values = [float(function(totals[1]) - function(totals[0])) for function in functions]
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(values)
    if not interval_note(len(references)):
        # The resamples depend only on the sizes and the seed: the same for both models.
        scores = [evaluate_blocks(resample_counts(counts, sizes, samples, seed), functions) for counts in kinds]
        bounds = percentile_bounds(scores[1] - scores[0])
    return {name: MetricValue(value, *bound) for name, value, bound in zip(metrics, values, bounds, strict=True)}


def _kinds(rows: Array, num_classes: int) -> tuple[list[Counts], Array]:
    """Return both models' counts of one row of each kind, and the number of rows of each kind.

    A kind is a combination of the label and the two predictions.

    Args:
        rows: label, first and second prediction of each row, (N, 3) or (N, 3, C).
    """
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)  # (K, 3) or (K, 3, C)
    sets = kinds if kinds.ndim == 3 else np.eye(num_classes)[kinds]  # (K, 3, C)
    actual = sets[:, 0]
    models = (sets[:, 1], sets[:, 2])
    return [Counts(p * actual, p, actual, (p == actual).all(-1), 1) for p in models], sizes


def _regression_differences(
    pair: tuple[Array, Array], references: Array, metrics: Sequence[str], samples: int, seed: int
) -> dict[str, MetricValue]:
    """Return `paired_differences` of predicted values (N,)."""
    values = {
        name: none_if_undefined(REGRESSION[name](pair[1], references) - REGRESSION[name](pair[0], references))
        for name in metrics
    }
    if interval_note(len(references)):
        return {name: MetricValue(value) for name, value in values.items()}
    labels = references.astype(float)
    resamples = [regression_resamples(model.astype(float), labels, samples, seed) for model in pair]
    differences = [[b[name] - a[name] for name in metrics] for a, b in zip(*resamples, strict=True)]
    bounds = percentile_bounds(np.array(differences))
    return {name: MetricValue(value, *bound) for (name, value), bound in zip(values.items(), bounds, strict=True)}
