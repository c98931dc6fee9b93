"""Bootstrap confidence intervals of metrics (Efron 1979): the 2.5th and 97.5th percentiles over resampled rows.

Rows with the same label and the same prediction are of one kind: a cell of the confusion matrix. Drawing N rows with
replacement is the same as drawing the number of rows of each kind from a multinomial distribution. Its cost does not
depend on N, and many resamples are drawn in one call.

    N rows, C classes, R resamples, K kinds of rows (non-empty cells of the confusion matrix), X metric values
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Counts,
    confusion_matrix,
    f1,
    none_if_undefined,
    precision,
    recall,
)
from finetune.progress import stage
from finetune.runs.results import ClassScores, MetricValue

Array = NDArray[Any]
MIN_ROWS = 10  # fewer rows have too few different resamples: 4 rows have only 35
Bounds = tuple[float | None, float | None]
_BLOCK = 5_000_000  # maximum number of resampled counts in memory
_PROGRESS_STEPS = 100  # resamples between two updates of the progress display


def classification_intervals(
    predictions: Array, references: Array, label_names: list[str], *, samples: int, seed: int
) -> tuple[dict[str, MetricValue], list[ClassScores]]:
    """Return all metrics and the per-class table, with 95 % confidence intervals.

    Args:
        predictions: class ids (N,), or 0/1 label sets (N, C) in multi-label classification.
        references: the labels in the same form.
        samples: number of resamples R.
    """
    if predictions.ndim == 1:
        metrics, (kinds, sizes) = SINGLE_LABEL, _single_label_kinds(predictions, references, len(label_names))
    else:
        metrics, (kinds, sizes) = MULTI_LABEL, _multi_label_kinds(predictions, references)
    functions = [*metrics.values(), precision, recall, f1]
    total = total_counts(kinds, sizes)
    values = np.concatenate([np.reshape(function(total), -1) for function in functions])
    bounds: list[Bounds] = [(None, None)] * len(values)
    if not interval_note(total.rows):
        bounds = percentile_bounds(evaluate_blocks(resample_counts(kinds, sizes, samples, seed), functions))
    cells = [MetricValue(float(value), low, high) for value, (low, high) in zip(values, bounds, strict=True)]
    overall, by_class = cells[: len(metrics)], np.reshape(np.array(cells[len(metrics) :], dtype=object), (3, -1))
    per_class = [
        ClassScores(name, by_class[0, index], by_class[1, index], by_class[2, index], int(total.actual[index]))
        for index, name in enumerate(label_names)
    ]
    return dict(zip(metrics, overall, strict=True)), per_class


def regression_intervals(predictions: Array, references: Array, *, samples: int, seed: int) -> dict[str, MetricValue]:
    """Return all regression metrics of predicted values (N,), with 95 % confidence intervals.

    An undefined metric has the value None and no interval.
    """
    values = {name: none_if_undefined(metric(predictions, references)) for name, metric in REGRESSION.items()}
    if interval_note(len(references)):
        return {name: MetricValue(value) for name, value in values.items()}
    resamples = regression_resamples(predictions.astype(float), references.astype(float), samples, seed)
    resampled = np.array([[metrics[name] for name in REGRESSION] for metrics in resamples])
    return {
        name: MetricValue(value, low, high)
        for (name, value), (low, high) in zip(values.items(), percentile_bounds(resampled), strict=True)
    }


def interval_note(rows: int) -> str:
    """Return why there are no intervals, or "" if there are."""
    return f"{rows} rows are too few for bootstrap intervals (at least {MIN_ROWS})" if rows < MIN_ROWS else ""


def _single_label_kinds(predictions: Array, references: Array, num_classes: int) -> tuple[Counts, Array]:
    """Return the counts of one row of each kind, and the number of rows of each kind; a kind is (label, prediction)."""
    confusion = confusion_matrix(predictions, references, num_classes)
    actual, predicted = np.nonzero(confusion)  # (K,)
    one_hot, correct = np.eye(num_classes), actual == predicted
    kinds = Counts(one_hot[actual] * correct[:, None], one_hot[predicted], one_hot[actual], correct, 1)
    return kinds, confusion[actual, predicted]


def _multi_label_kinds(predictions: Array, references: Array) -> tuple[Counts, Array]:
    """Return the counts of every row, and ones (N,), because each row is a separate kind."""
    exact = (predictions == references).all(-1)
    return Counts(predictions * references, predictions, references, exact, 1), np.ones(len(references), dtype=int)


def total_counts(kinds: Counts, sizes: Array) -> Counts:
    """Return the counts of all rows."""
    return Counts(
        sizes @ kinds.hits, sizes @ kinds.predicted, sizes @ kinds.actual, sizes @ kinds.exact, int(sizes.sum())
    )


def resample_counts(kinds: Counts, sizes: Array, samples: int, seed: int) -> Iterator[Counts]:
    """Yield the counts of all resamples, in blocks.

    Args:
        kinds: the counts of one row of each kind: (K, C), `exact` (K,).
        sizes: the number of rows of each kind, (K,).
    """
    return (counts_of_draws(drawn, kinds) for drawn in draw_kinds(sizes, samples, seed))


def draw_kinds(sizes: Array, samples: int, seed: int) -> Iterator[Array]:
    """Yield how many rows of each kind every resample has, in blocks (R, K).

    Args:
        sizes: the number of rows of each kind, (K,).
    """
    rng = np.random.default_rng(seed)
    rows = int(sizes.sum())
    block = max(1, _BLOCK // len(sizes))
    with stage("computing confidence intervals", total=samples) as running:
        for start in range(0, samples, block):
            drawn = rng.multinomial(rows, sizes / rows, size=min(block, samples - start)).astype(float)
            yield drawn
            running.advance(len(drawn))


def counts_of_draws(drawn: Array, kinds: Counts) -> Counts:
    """Return the counts of resamples that have so many rows of each kind, (R, K)."""
    rows = round(float(drawn[0].sum()))
    return Counts(drawn @ kinds.hits, drawn @ kinds.predicted, drawn @ kinds.actual, drawn @ kinds.exact, rows)


def evaluate_blocks(blocks: Iterator[Counts], functions: list[Callable[[Counts], Array]]) -> Array:
    """Return the values of all functions for every resample, (R, X)."""
    return np.concatenate(
        [
            np.column_stack([np.reshape(function(block), (len(block.exact), -1)) for function in functions])
            for block in blocks
        ]
    )


def percentile_bounds(resampled: Array) -> list[Bounds]:
    """Return the interval of each column of (R, X), over the resamples in which the value is defined (not NaN).

    The bounds are None if all resamples have the same value.
    """
    bounds: list[Bounds] = []
    for column in resampled.T:
        values = column[np.isfinite(column)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (0.0, 0.0)
        bounds.append((float(low), float(high)) if low < high else (None, None))
    return bounds


def regression_resamples(predictions: Array, references: Array, samples: int, seed: int) -> Iterator[dict[str, float]]:
    """Yield the metrics of each resample; those without a fast formula are computed on the drawn rows."""
    rng, rows = np.random.default_rng(seed), len(references)
    metrics_of_counts = _fast_regression_metrics(predictions, references)
    with stage("computing confidence intervals", total=samples) as running:
        for number in range(1, samples + 1):
            drawn = rng.integers(0, rows, size=rows)
            metrics = metrics_of_counts(np.bincount(drawn, minlength=rows).astype(float))
            for name in REGRESSION.keys() - metrics.keys():
                metrics[name] = REGRESSION[name](predictions[drawn], references[drawn])
            yield metrics
            if number % _PROGRESS_STEPS == 0:
                running.advance(_PROGRESS_STEPS)


def _fast_regression_metrics(predictions: Array, references: Array) -> Callable[[Array], dict[str, float]]:
    """Return a function from how often each row was drawn, (N,), to metrics; it does not copy or sort rows."""
    rows = len(references)
    x, y = predictions - predictions.mean(), references - references.mean()  # (N,); the correlation stays the same
    sums = np.stack([np.abs(predictions - references), (predictions - references) ** 2, x, y])
    (_, value_of_x), (_, value_of_y) = (np.unique(values, return_inverse=True) for values in (predictions, references))

    def metrics_of_counts(times: Array) -> dict[str, float]:
        """Return the metrics of a resample that has each row so many times, (N,)."""
        absolute, squared, mean_x, mean_y = sums @ times / rows
        # Center on the means of the resample before squaring. Subtracting large squares from each other would lose all
        # digits if the resample lacks the rows with extreme values.
        from_x, from_y = x - mean_x, y - mean_y
        xx, yy, xy = (times @ product for product in (from_x * from_x, from_y * from_y, from_x * from_y))
        counts = [np.bincount(values, weights=times) for values in (value_of_x, value_of_y)]  # per distinct value
        # Equal values get the mean of their ranks. Ranks are counted from the middle, so that their mean is 0.
        rank_x, rank_y = (np.cumsum(n) - (n + rows) / 2 for n in counts)
        varies = min(np.count_nonzero(n) for n in counts) > 1  # otherwise undefined, as in metric_formulas.py
        spreads = [n @ (rank * rank) for n, rank in zip(counts, (rank_x, rank_y), strict=True)]
        return {
            "mean_squared_error": squared,
            "mean_absolute_error": absolute,
            "pearson": float(np.clip(xy / np.sqrt(xx * yy), -1, 1)) if varies else np.nan,
            "spearman": float(times @ (rank_x[value_of_x] * rank_y[value_of_y]) / np.sqrt(spreads[0] * spreads[1]))
            if varies
            else np.nan,
        }

    return metrics_of_counts
