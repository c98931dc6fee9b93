"""The 95 % intervals of classification metrics, computed without resampling.

An interval is for the metric of the classifier on the population from which the rows are a sample: on infinitely many
rows with the same shares of classes and the same errors. Macro F1 is the mean over the classes that occur in the rows
(or, for label sets, over all labels, where one that does not occur counts as 0), in the population as in the rows.

- Accuracy, subset accuracy, recall and precision are shares of rows: of all, of the rows of a class, or of the rows
  predicted as it. Their interval is that of Jeffreys (Brown, Cai and DasGupta 2001, Statistical Science 16:101).
- The F1 of a class is 2 J / (1 + J), where J is the share of hits among the rows that have the class as label or
  prediction. Its interval is that of J, transformed.
- Every other metric has a variance by the delta method, as in Takahashi et al. (2022, Applied Intelligence 52:4961).
  A share of a certain number of rows would have the same variance, and the interval is that of Jeffreys for so many
  rows. This is the method of Korn and Graubard (1998, Survey Methodology 24:193) for shares in complex surveys.

The error rate of a class with few rows is uncertain: without an error, its variance would be 0. So the variance is
computed as if every class had a few rows more, with the error rate of all classes. A mean of the F1 of many classes
with few rows each is too low. To second order, the F1 of a class is too low by 2 J (1 - J) / ((1 + J)^3 U), where U is
the number of rows that have the class as label or prediction. The interval, not the value, is corrected for it.
tests/benchmarks/intervals.py simulates how often the intervals contain the value of the population.

    N rows, C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetune.evaluation.influence import Influence, influence_on
from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    SINGLE_LABEL,
    Counts,
    confusion_matrix,
    counts_of_confusion,
    counts_of_sets,
    f1,
    precision,
    recall,
)
from finetune.runs.results import ClassScores, MetricValue

Array = NDArray[Any]
MIN_ROWS = 10  # fewer rows show too little about the spread of a metric
_BORROWED_ROWS = 4.0  # of a class with the error rate of all classes, for the variance
# The interval of macro F1 covers less than 93 % if fewer rows decide its variance, and that of macro or weighted F1 if
# most classes have few rows.
_MIN_CLASS_ROWS = 12
_FEW_CLASS_ROWS = 5
_MAX_FEW_CLASSES = 0.5
_LEVELS = np.array([0.025, 0.975])


def classification_intervals(
    predictions: Array, references: Array, label_names: list[str]
) -> tuple[dict[str, MetricValue], list[ClassScores]]:
    """Return all metrics and the per-class table, with 95 % intervals.

    Args:
        predictions: class ids (N,), or 0/1 label sets (N, C) in multi-label classification.
        references: the labels in the same form.
    """
    if predictions.ndim == 1:
        metrics, rows = SINGLE_LABEL, _sample_of_labels(predictions, references, len(label_names))
    else:
        metrics, rows = MULTI_LABEL, _sample_of_sets(predictions, references)
    few = interval_note(rows.total.rows)
    overall = {
        name: MetricValue(float(function(rows.total))) if few else _metric(name, function, rows)
        for name, function in metrics.items()
    }
    return overall, _class_scores(rows.total, label_names, show=not few)


def interval_note(rows: int) -> str:
    """Return why there are no intervals, or "" if there are."""
    counted = "1 row is" if rows == 1 else f"{rows} rows are"
    return f"{counted} too few for an interval (at least {MIN_ROWS})" if rows < MIN_ROWS else ""


def share_interval(successes: Array | float, trials: Array | float) -> tuple[Array, Array]:
    """Return the 95 % interval of Jeffreys of a share; its end is 0 without a success, and 1 if all are successes."""
    successes, trials = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    low, high = (stats.beta.ppf(level, successes + 0.5, trials - successes + 0.5) for level in _LEVELS)
    return np.where(successes <= 0, 0.0, low), np.where(successes >= trials, 1.0, high)


@dataclass(frozen=True)
class _Sample:
    """What the intervals are computed from.

    Attributes:
        total: the counts of all rows.
        share: the share of hits among the rows of each class and the borrowed rows, (C,).
        has_one_label: whether every row has one label, so that micro F1 is accuracy.
        spread: returns the mean influence of all rows and the borrowed rows, and the variance of the metric.
    """

    total: Counts
    share: Array
    has_one_label: bool
    spread: Callable[[Influence], tuple[float, float]]

    def class_rows(self) -> Array:
        """Return the number of rows that have each class as label or prediction, (C,)."""
        return _class_rows(self.total)


def _class_rows(total: Counts) -> Array:
    rows: Array = total.predicted + total.actual - total.hits
    return rows


def _share(total: Counts) -> Array:
    """Return the share of hits among the rows of each class and the borrowed rows, (C,)."""
    class_rows = _class_rows(total)
    overall = (total.hits.sum() + 0.5) / (class_rows.sum() + 1)
    share: Array = (total.hits + _BORROWED_ROWS * overall) / (class_rows + _BORROWED_ROWS)
    return share


def _sample_of_labels(predictions: Array, references: Array, num_classes: int) -> _Sample:
    confusion = confusion_matrix(predictions, references, num_classes)
    expected = _expected_confusion(confusion)

    def spread(influence: Influence) -> tuple[float, float]:
        return _moments(influence.of_labels(), expected)

    total = counts_of_confusion(confusion)
    return _Sample(total, _share(total), True, spread)


def _expected_confusion(confusion: Array) -> Array:
    """Return the confusion matrix (C, C) if each class had borrowed rows, scaled to its number of rows.

    The borrowed rows have the error rate of all rows, and their errors are distributed over the classes by size.
    """
    total = counts_of_confusion(confusion)
    wrong = (total.rows - total.exact + 0.5) / (total.rows + 1)
    others = np.tile(total.actual + total.predicted, (len(confusion), 1)).astype(float)
    np.fill_diagonal(others, 0.0)
    others /= np.maximum(others.sum(1, keepdims=True), 1)
    borrowed = (1 - wrong) * np.eye(len(confusion)) + wrong * others
    rows = total.actual[:, None]
    expected: Array = rows * (confusion + _BORROWED_ROWS * borrowed) / (rows + _BORROWED_ROWS)
    return expected


def _sample_of_sets(predictions: Array, references: Array) -> _Sample:
    total = counts_of_sets(predictions, references)
    share, class_rows = _share(total), _class_rows(total)
    more_hits = class_rows * share - total.hits  # (C,), and as many misses less, half of them of each kind

    def spread(influence: Influence) -> tuple[float, float]:
        mean, variance = _moments(influence.of_sets(predictions, references), np.ones(total.rows))
        missed, wrong = influence.actual, influence.predicted
        hit = influence.hits + missed + wrong
        mean += float(more_hits @ (hit - (missed + wrong) / 2)) / total.rows
        added = float(more_hits @ (hit**2 - (missed**2 + wrong**2) / 2)) / total.rows**2
        return mean, max(variance / 2, variance + added)

    return _Sample(total, share, False, spread)


def _moments(influence: Array, sizes: Array) -> tuple[float, float]:
    """Return the mean influence, and the variance of the metric, for numbers of rows of each influence."""
    rows = sizes.sum()
    mean = float((sizes * influence).sum() / rows)
    return mean, float((sizes * (influence - mean) ** 2).sum() / rows**2)


def _metric(name: str, function: Callable[[Counts], Array], rows: _Sample) -> MetricValue:
    """Return a metric with its interval, or a note that says why it has none."""
    total = rows.total
    value = float(function(total))
    if name in ("accuracy", "subset_accuracy") or (name == "f1_micro" and rows.has_one_label):
        low, high = share_interval(total.exact, total.rows)
        return MetricValue(value, float(low), float(high))
    if note := _note(name, rows):
        return MetricValue(value, note=f"no interval: {note}")
    mean, variance = rows.spread(influence_on(function, total))
    bottom, top = _range(name, rows)
    width = top - bottom
    share, expected = (value + _bias(name, rows) - bottom) / width, (value + mean - bottom) / width
    share = float(np.clip(share, 0, 1))
    trials = expected * (1 - expected) * width**2 / variance if variance > 0 else np.nan
    if not trials > 0:  # also NaN
        return MetricValue(value, note="no interval: all rows have the same influence on it")
    low, high = share_interval(trials * share, trials)
    return MetricValue(value, bottom + width * float(low), bottom + width * float(high))


def _note(name: str, rows: _Sample) -> str:
    """Return why a metric has no interval, or ""."""
    total = rows.total
    if name == "matthews_correlation" and max(total.actual.max(), total.predicted.max()) == total.rows:
        return "all rows have the same label or the same prediction"
    if name.startswith("f1") and not (total.actual + total.predicted).any():
        return "no row has a label or a prediction"
    if name in ("f1_macro", "f1_weighted"):
        counts = total.actual[(total.actual + total.predicted) > 0]
        few = int((counts < _FEW_CLASS_ROWS).sum())
        if few > _MAX_FEW_CLASSES * len(counts):
            return _few_rows(few, len(counts), _FEW_CLASS_ROWS, rows.has_one_label)
        if name == "f1_macro" and _rows_behind_variance(rows) < _MIN_CLASS_ROWS:
            return _few_rows(int((counts < _MIN_CLASS_ROWS).sum()), len(counts), _MIN_CLASS_ROWS, rows.has_one_label)
    return ""


def _few_rows(few: int, classes: int, rows: int, has_one_label: bool) -> str:
    one, several = ("class", "classes") if has_one_label else ("label", "labels")
    verb = "has" if few == 1 else "have"
    return f"{few} of {classes} {one if classes == 1 else several} {verb} fewer than {rows} rows"


def _rows_behind_variance(rows: _Sample) -> float:
    """Return how many rows decide the variance of macro F1, by the formula of Satterthwaite (1946) for classes.

    It is the number of rows of a single class, if that class has most of the variance.
    """
    class_rows, share = np.maximum(rows.class_rows(), 1), rows.share
    variance = np.where(rows.class_rows() > 0, share * (1 - share) / (1 + share) ** 4 / class_rows, 0.0)
    return float(variance.sum() ** 2 / (variance**2 / class_rows).sum())


def _range(name: str, rows: _Sample) -> tuple[float, float]:
    """Return the lowest and the highest possible value of a metric, for the classes that occur."""
    if name == "matthews_correlation":
        return -1.0, 1.0
    if name == "f1_macro" and not rows.has_one_label:
        return 0.0, float((rows.class_rows() > 0).mean())
    return 0.0, 1.0


def _bias(name: str, rows: _Sample) -> float:
    """Return by how much macro F1 is too low, because each class has few rows."""
    if name != "f1_macro":
        return 0.0
    class_rows, share = rows.class_rows(), rows.share
    occurs = class_rows > 0
    bias = 2 * share * (1 - share) / ((1 + share) ** 3 * np.maximum(class_rows, 1))
    return float(bias[occurs].sum() / (occurs.sum() if rows.has_one_label else len(occurs)))


def _class_scores(total: Counts, label_names: list[str], *, show: bool) -> list[ClassScores]:
    """Return precision, recall and F1 of each class; without an interval where no row counts, or unless `show`."""
    class_rows = _class_rows(total)
    hit_low, hit_high = share_interval(total.hits, class_rows)
    bounds = [
        (precision(total), *share_interval(total.hits, total.predicted), total.predicted),
        (recall(total), *share_interval(total.hits, total.actual), total.actual),
        (f1(total), 2 * hit_low / (1 + hit_low), 2 * hit_high / (1 + hit_high), class_rows),
    ]
    cells = [
        [
            MetricValue(float(value), float(low), float(high)) if show and rows else MetricValue(float(value))
            for value, low, high, rows in zip(*columns, strict=True)
        ]
        for columns in bounds
    ]
    return [
        ClassScores(name, cells[0][index], cells[1][index], cells[2][index], int(total.actual[index]))
        for index, name in enumerate(label_names)
    ]
