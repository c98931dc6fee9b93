"""Warnings if a model scores no better than a constant prediction, which is the same for every row.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metric_formulas import SINGLE_LABEL, confusion_matrix, counts_of_confusion
from finetune.runs.results import MetricValue

Array = NDArray[Any]
_MAX_NAMES = 5
_LEARNED_NOTHING = "the model may have learned nothing"
_FIX = "Try more epochs (training.num_train_epochs), another training.learning_rate, or more training rows"


@dataclass(frozen=True)
class ConstantComparison:
    """Whether a model is clearly better than a constant prediction, and warnings to show.

    Attributes:
        above_constant: whether its score is clearly better; None if all rows have one label, so that none can be.
        warnings: what was measured, what it means, what to try.
    """

    above_constant: bool | None
    warnings: list[str]


def compare_with_constant(
    predictions: Array,
    references: Array,
    label_names: Sequence[str],
    metrics: Mapping[str, MetricValue],
    metric: str = "accuracy",
) -> ConstantComparison:
    """Return whether the model is clearly better than the best constant prediction, with warnings if it is not.

    A score counts as better than the best constant prediction only if its full confidence interval is above the score
    of that prediction. Without an interval, the value itself is compared. A label that occurs in the rows but is never
    predicted is also reported.

    Args:
        predictions: class ids (N,), 0/1 label sets (N, C), or values (N,) in regression.
        references: the labels in the same form.
        label_names: the names of the C classes; empty in regression.
        metrics: all metrics of the problem type.
        metric: the metric to compare for one label per row; any other name than those of its metrics means accuracy.
            The others are compared by micro F1 (label sets) and by the mean squared error (values).
    """
    if not label_names:
        return _compare_values(references.astype(float), metrics["mean_squared_error"])
    if references.ndim == 1:
        predicted, actual = (np.bincount(ids, minlength=len(label_names)) for ids in (predictions, references))
        metric = metric if metric in SINGLE_LABEL else "accuracy"
        result = _compare_classes(references, label_names, metric, metrics[metric])
    else:
        predicted, actual = predictions.sum(0), references.sum(0)
        result = _compare_sets(predicted, references, label_names, metrics["f1_micro"])
    missing = _never_predicted_warnings(predicted, actual, label_names)
    return ConstantComparison(result.above_constant, result.warnings + missing)


def without_constant_warning(warnings: Sequence[str]) -> list[str]:
    """Return the warnings of `compare_with_constant` without the one about the score of a constant prediction."""
    return [warning for warning in warnings if _LEARNED_NOTHING not in warning]


def constant_score(references: Array, num_classes: int, metric: str) -> float:
    """Return a single-label metric of predicting the most frequent of the class ids (N,) for every row."""
    majority = np.full_like(references, np.bincount(references).argmax())
    return float(SINGLE_LABEL[metric](counts_of_confusion(confusion_matrix(majority, references, num_classes))))


def _compare_classes(references: Array, names: Sequence[str], metric: str, score: MetricValue) -> ConstantComparison:
    """Compare with predicting the most frequent of the class ids (N,) for every row."""
    actual = np.bincount(references)
    rows, majority = len(references), names[int(actual.argmax())]
    if actual.max() == rows:
        return ConstantComparison(None, [_constant_label_warning(rows, f"the label '{majority}'")])
    constant = constant_score(references, len(names), metric)
    return _compare(score, metric, constant, f"predicting '{majority}' for every row")


def _compare_sets(predicted: Array, references: Array, names: Sequence[str], f1: MetricValue) -> ConstantComparison:
    """Compare with the best constant set of labels; `predicted`: counts per label, (C,); references: (N, C)."""
    if not predicted.any():
        warning = (
            "no label was predicted for any row, because no probability exceeds 0.5: the model has not learned any "
            "label. Try more epochs (training.num_train_epochs), a higher training.learning_rate, or more training rows"
        )
        return ConstantComparison(False, [warning])
    chosen, constant = best_constant_set(references)
    answer = join_names([f"'{names[index]}'" for index in chosen])
    return _compare(f1, "f1_micro", constant, f"predicting {answer} for every row")


def best_constant_set(labels: Array) -> tuple[Array, float]:
    """Return the labels whose prediction for every row gives the highest micro F1, and that F1.

    They are the k most frequent ones.

    Args:
        labels: 0/1 label sets, (N, C).
    """
    actual = labels.sum(0)
    order = np.argsort(-actual, kind="stable")
    sizes = len(labels) * np.arange(1, len(order) + 1) + actual.sum()
    scores = 2 * actual[order].cumsum() / sizes  # micro F1 for each k
    best = int(scores.argmax())
    return order[: best + 1], float(scores[best])


def _compare_values(actual: Array, error: MetricValue) -> ConstantComparison:
    """Compare with predicting the mean of the labels (N,) for every row; its mean squared error is their variance."""
    variance = float(actual.var())
    if np.ptp(actual) == 0:
        return ConstantComparison(None, [_constant_label_warning(len(actual), f"the value {actual[0]:g}")])
    upper = error.value if error.high is None else error.high
    if upper is not None and upper < variance:
        return ConstantComparison(True, [])
    warning = (
        f"mean_squared_error {_format_score(error)} is not clearly below {variance:.3f}, the score of predicting the "
        f"mean for every row: {_LEARNED_NOTHING}. {_FIX}"
    )
    return ConstantComparison(False, [warning])


def _compare(score: MetricValue, metric: str, constant: float, answer: str) -> ConstantComparison:
    """Compare a score with `constant`, the score of the constant prediction `answer`."""
    lower = score.value if score.low is None else score.low
    if lower is not None and lower > constant:
        return ConstantComparison(True, [])
    warning = (
        f"{metric} {_format_score(score)} is not clearly above {constant:.3f}, the score of {answer}: "
        f"{_LEARNED_NOTHING}. {_FIX}"
    )
    return ConstantComparison(False, [warning])


def _constant_label_warning(rows: int, what: str) -> str:
    return f"all {rows} rows have {what}, so the scores do not show whether the model distinguishes between rows"


def _never_predicted_warnings(predicted: Array, actual: Array, names: Sequence[str]) -> list[str]:
    """Return a warning about labels that occur but are never predicted, most frequent first; counts per label, (C,)."""
    missing = [index for index in np.argsort(-actual, kind="stable") if actual[index] and not predicted[index]]
    if not missing or not predicted.any():
        return []
    listed = join_names([f"'{names[index]}' ({actual[index]} row{'s' * int(actual[index] > 1)})" for index in missing])
    return [
        f"never predicted: {listed}, so their recall is 0. Try more training rows of these labels, or more epochs "
        "(training.num_train_epochs)"
    ]


def join_names(names: Sequence[str]) -> str:
    """Return the first names as a list, and how many others there are."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _format_score(score: MetricValue) -> str:
    return f"{score.value:.3f} {score.interval()}".rstrip() if score.value is not None else "undefined"
