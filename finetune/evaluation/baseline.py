"""Warnings if a model scores no better than a constant prediction, which is the same for every row.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.runs.results import MetricValue

Array = NDArray[Any]
_MAX_NAMES = 5
_FIX = "Try more epochs (training.num_train_epochs), another training.learning_rate, or more training rows"


def baseline_warnings(
    predictions: Array, references: Array, label_names: Sequence[str], metrics: Mapping[str, MetricValue]
) -> list[str]:
    """Return warnings that the model may have learned nothing: what was measured, what it means, what to try.

    A score counts as better than the best constant prediction only if its full confidence interval is above the score
    of that prediction. Without an interval, the value itself is compared. A label that occurs in the rows but is never
    predicted is also reported.

    Args:
        predictions: class ids (N,), 0/1 label sets (N, C), or values (N,) in regression.
        references: the labels in the same form.
        label_names: the names of the C classes; empty in regression.
        metrics: all metrics of the problem type.
    """
    if not label_names:
        return _regression_warnings(references.astype(float), metrics["mean_squared_error"])
    if references.ndim == 1:
        predicted, actual = (np.bincount(ids, minlength=len(label_names)) for ids in (predictions, references))
        warnings = _single_label_warnings(actual, label_names, metrics["accuracy"])
    else:
        predicted, actual = predictions.sum(0), references.sum(0)
        warnings = _multi_label_warnings(predicted, actual, len(references), label_names, metrics["f1_micro"])
    return warnings + _never_predicted_warnings(predicted, actual, label_names)


def _single_label_warnings(actual: Array, names: Sequence[str], accuracy: MetricValue) -> list[str]:
    """Compare with predicting the most frequent class for every row; `actual`: rows per class, (C,)."""
    rows, majority = int(actual.sum()), int(actual.argmax())
    if actual[majority] == rows:
        return [_constant_label_warning(rows, f"the label '{names[majority]}'")]
    return _warn_unless_above(
        accuracy, "accuracy", actual[majority] / rows, f"predicting '{names[majority]}' for every row"
    )


def _multi_label_warnings(
    predicted: Array, actual: Array, rows: int, names: Sequence[str], f1: MetricValue
) -> list[str]:
    """Compare with the best constant set of labels, which are the k most frequent ones; counts per label, (C,)."""
    if not predicted.any():
        return [
            "no label was predicted for any row, because no probability exceeds 0.5: the model has not learned any "
            "label. Try more epochs (training.num_train_epochs), a higher training.learning_rate, or more training rows"
        ]
    order = np.argsort(-actual, kind="stable")
    scores = 2 * actual[order].cumsum() / (rows * np.arange(1, len(order) + 1) + actual.sum())  # micro F1 for each k
    best = int(scores.argmax())
    answer = _join_names([f"'{names[index]}'" for index in order[: best + 1]])
    return _warn_unless_above(f1, "f1_micro", float(scores[best]), f"predicting {answer} for every row")


def _regression_warnings(actual: Array, error: MetricValue) -> list[str]:
    """Compare with predicting the mean of the labels (N,) for every row; its mean squared error is their variance."""
    variance = float(actual.var())
    if np.ptp(actual) == 0:
        return [_constant_label_warning(len(actual), f"the value {actual[0]:g}")]
    upper = error.value if error.high is None else error.high
    if upper is not None and upper < variance:
        return []
    return [
        f"mean_squared_error {_format_score(error)} is not clearly below {variance:.3f}, the score of predicting the "
        f"mean for every row: the model may have learned nothing. {_FIX}"
    ]


def _warn_unless_above(score: MetricValue, metric: str, constant: float, answer: str) -> list[str]:
    """Return a warning unless the score is clearly above `constant`, the score of the constant prediction."""
    lower = score.value if score.low is None else score.low
    if lower is not None and lower > constant:
        return []
    return [
        f"{metric} {_format_score(score)} is not clearly above {constant:.3f}, the score of {answer}: the model may "
        f"have learned nothing. {_FIX}"
    ]


def _constant_label_warning(rows: int, what: str) -> str:
    return f"all {rows} rows have {what}, so the scores do not show whether the model distinguishes between rows"


def _never_predicted_warnings(predicted: Array, actual: Array, names: Sequence[str]) -> list[str]:
    """Return a warning about labels that occur but are never predicted, most frequent first; counts per label, (C,)."""
    missing = [index for index in np.argsort(-actual, kind="stable") if actual[index] and not predicted[index]]
    if not missing or not predicted.any():
        return []
    listed = _join_names([f"'{names[index]}' ({actual[index]} row{'s' * int(actual[index] > 1)})" for index in missing])
    return [
        f"never predicted: {listed}, so their recall is 0. Try more training rows of these labels, or more epochs "
        "(training.num_train_epochs)"
    ]


def _join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _format_score(score: MetricValue) -> str:
    return f"{score.value:.3f} {score.interval()}".rstrip() if score.value is not None else "undefined"
