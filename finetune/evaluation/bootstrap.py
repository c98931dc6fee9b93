"""Bootstrap intervals of metrics (Efron 1979): rows drawn with replacement, 2.5 and 97.5 percentiles.

Drawing N rows with replacement and counting them is drawing the cells of the confusion matrix from a
multinomial distribution; so R resamples cost one call, however many rows there are.

    N rows, C classes, R resamples, K kinds of rows (cells of the confusion matrix that are not empty)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    Counts,
    confusion_matrix,
    defined,
    f1,
    precision,
    recall,
)
from finetune.runs.results import ClassScores, MetricValue

Array = NDArray[Any]
FEWEST_ROWS = 10  # of 4 rows there are only 35 different resamples: an interval would feign knowledge
Bounds = tuple[float | None, float | None]
_BLOCK = 5_000_000  # resampled numbers held in memory at once


def interval_note(rows: int) -> str:
    """Return why there are no intervals, or "" when there are."""
    return f"{rows} rows are too few for bootstrap intervals ({FEWEST_ROWS} at least)" if rows < FEWEST_ROWS else ""


def _bounds(resampled: Array) -> list[Bounds]:
    """Return the bounds of each column of (R, X), over the resamples in which it is defined (not NaN).

    They are None where no resample differs: there is nothing to measure.
    """
    bounds: list[Bounds] = []
    for column in resampled.T:
        values = column[np.isfinite(column)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (0.0, 0.0)
        bounds.append((float(low), float(high)) if low < high else (None, None))
    return bounds


def _resampled(kinds: Counts, sizes: Array, samples: int, seed: int) -> Iterator[Counts]:
    """Yield resampled counts in blocks.

    Args:
        kinds: counts of a single row of each kind: (K, C), `exact` (K,).
        sizes: how many rows there are of each kind, (K,).
    """
    rng = np.random.default_rng(seed)
    rows = int(sizes.sum())
    block = max(1, _BLOCK // len(sizes))
    for start in range(0, samples, block):
        drawn = rng.multinomial(rows, sizes / rows, size=min(block, samples - start)).astype(float)  # (R, K)
        yield Counts(drawn @ kinds.hits, drawn @ kinds.predicted, drawn @ kinds.actual, drawn @ kinds.exact, rows)


def _gather(blocks: Iterator[Counts], functions: list[Callable[[Counts], Array]]) -> Array:
    """Return (R, X): each function's values side by side."""
    return np.concatenate(
        [
            np.column_stack([np.reshape(function(block), (len(block.exact), -1)) for function in functions])
            for block in blocks
        ]
    )


def _total(kinds: Counts, sizes: Array) -> Counts:
    return Counts(
        sizes @ kinds.hits, sizes @ kinds.predicted, sizes @ kinds.actual, sizes @ kinds.exact, int(sizes.sum())
    )


def _single_label_kinds(predictions: Array, references: Array, num_classes: int) -> tuple[Counts, Array]:
    confusion = confusion_matrix(predictions, references, num_classes)
    actual, predicted = np.nonzero(confusion)  # (K,)
    one_hot, right = np.eye(num_classes), actual == predicted
    return Counts(one_hot[actual] * right[:, None], one_hot[predicted], one_hot[actual], right, 1), confusion[
        actual, predicted
    ]


def _multi_label_kinds(predictions: Array, references: Array) -> tuple[Counts, Array]:
    exact = (predictions == references).all(-1)
    return Counts(predictions * references, predictions, references, exact, 1), np.ones(len(references), dtype=int)


def classification_intervals(
    predictions: Array, references: Array, label_names: list[str], *, samples: int, seed: int
) -> tuple[dict[str, MetricValue], list[ClassScores]]:
    """Return every metric and the per-class table, with 95 % intervals.

    Args:
        predictions: ids (N,), or 0/1 sets (N, C) for multi-label classification.
        references: the same of the labels.
        samples: resamples R.
    """
    if predictions.ndim == 1:
        metrics, (kinds, sizes) = CLASSIFICATION, _single_label_kinds(predictions, references, len(label_names))
    else:
        metrics, (kinds, sizes) = MULTI_LABEL, _multi_label_kinds(predictions, references)
    functions = [*metrics.values(), precision, recall, f1]
    total = _total(kinds, sizes)
    values = np.concatenate([np.reshape(function(total), -1) for function in functions])
    bounds: list[Bounds] = [(None, None)] * len(values)
    if not interval_note(total.rows):
        bounds = _bounds(_gather(_resampled(kinds, sizes, samples, seed), functions))
    cells = [MetricValue(float(value), low, high) for value, (low, high) in zip(values, bounds, strict=True)]
    overall, by_class = cells[: len(metrics)], np.reshape(np.array(cells[len(metrics) :], dtype=object), (3, -1))
    per_class = [
        ClassScores(name, by_class[0, index], by_class[1, index], by_class[2, index], int(total.actual[index]))
        for index, name in enumerate(label_names)
    ]
    return dict(zip(metrics, overall, strict=True)), per_class


def _regression_resamples(predictions: Array, references: Array, samples: int, seed: int) -> Iterator[dict[str, float]]:
    """Yield the metrics of each resample, from how many times each row was drawn; no row is copied, no value sorted."""
    rng, rows = np.random.default_rng(seed), len(references)
    x, y = predictions - predictions.mean(), references - references.mean()  # (N,); a shift leaves correlations
    sums = np.stack([np.abs(predictions - references), (predictions - references) ** 2, x, y])
    (_, of_x), (_, of_y) = (np.unique(values, return_inverse=True) for values in (predictions, references))
    for _ in range(samples):
        times = np.bincount(rng.integers(0, rows, size=rows), minlength=rows).astype(float)  # (N,)
        absolute, squared, mean_x, mean_y = sums @ times / rows
        # Centred anew: far rows that this resample lacks would leave no digits to a difference of squares.
        from_x, from_y = x - mean_x, y - mean_y
        xx, yy, xy = (times @ product for product in (from_x * from_x, from_y * from_y, from_x * from_y))
        counts = [np.bincount(of, weights=times) for of in (of_x, of_y)]  # of each different value
        # Equal values share the mean of their ranks; ranks are counted from the middle, so that their mean is 0.
        rank_x, rank_y = (np.cumsum(n) - (n + rows) / 2 for n in counts)
        spread = min(np.count_nonzero(n) for n in counts) > 1  # else undefined, as in metrics.py
        spreads = [n @ (rank * rank) for n, rank in zip(counts, (rank_x, rank_y), strict=True)]
        yield {
            "mean_squared_error": squared,
            "mean_absolute_error": absolute,
            "pearson": float(np.clip(xy / np.sqrt(xx * yy), -1, 1)) if spread else np.nan,
            "spearman": float(times @ (rank_x[of_x] * rank_y[of_y]) / np.sqrt(spreads[0] * spreads[1]))
            if spread
            else np.nan,
        }


def regression_intervals(predictions: Array, references: Array, *, samples: int, seed: int) -> dict[str, MetricValue]:
    """Return every regression metric of predicted values (N,) against references (N,), with 95 % intervals.

    A metric that is undefined has the value None and no interval.
    """
    values = {name: defined(metric(predictions, references)) for name, metric in REGRESSION.items()}
    if interval_note(len(references)):
        return {name: MetricValue(value) for name, value in values.items()}
    drawn = _regression_resamples(predictions.astype(float), references.astype(float), samples, seed)
    resampled = np.array([[found[name] for name in REGRESSION] for found in drawn])
    return {
        name: MetricValue(value, low, high)
        for (name, value), (low, high) in zip(values.items(), _bounds(resampled), strict=True)
    }
