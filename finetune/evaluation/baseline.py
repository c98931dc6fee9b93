"""Warnings if a model scores no better than a constant answer, the same for every row.

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
_TRY = "Try more epochs (training.num_train_epochs), another training.learning_rate, or more training rows"


def baseline_warnings(
    predictions: Array, references: Array, label_names: Sequence[str], metrics: Mapping[str, MetricValue]
) -> list[str]:
    """Return warnings that the model may have learned nothing: what was measured, what it means, what to try.

    A score is better than the best constant answer if its confidence interval is completely above it; without an
    interval, if its value is. A label that occurs in the rows but is never predicted is also reported.

    Args:
        predictions: class ids (N,), 0/1 label sets (N, C), or values (N,) in regression.
        references: the labels in the same form.
        label_names: the names of the C classes; empty in regression.
        metrics: all metrics of the problem type.
    """
    if not label_names:
        return _regression(references.astype(float), metrics["mean_squared_error"])
    if references.ndim == 1:
        predicted, actual = (np.bincount(ids, minlength=len(label_names)) for ids in (predictions, references))
        warnings = _single_label(actual, label_names, metrics["accuracy"])
    else:
        predicted, actual = predictions.sum(0), references.sum(0)
        warnings = _multi_label(predicted, actual, len(references), label_names, metrics["f1_micro"])
    return warnings + _never_predicted(predicted, actual, label_names)


def _single_label(actual: Array, names: Sequence[str], accuracy: MetricValue) -> list[str]:
    """Compare with always answering the most frequent class; `actual`: rows per class, (C,)."""
    rows, majority = int(actual.sum()), int(actual.argmax())
    if actual[majority] == rows:
        return [_one_label(rows, f"the label '{names[majority]}'")]
    return _not_above(accuracy, "accuracy", actual[majority] / rows, f"predicting '{names[majority]}' for every row")


def _multi_label(predicted: Array, actual: Array, rows: int, names: Sequence[str], f1: MetricValue) -> list[str]:
    """Compare with the best constant set of labels, the k most frequent ones; counts per label, (C,)."""
    if not predicted.any():
        return [
            "no label was predicted for any row, because no probability exceeds 0.5: the model has not learned any "
            "label. Try more epochs (training.num_train_epochs), a higher training.learning_rate, or more training rows"
        ]
    order = np.argsort(-actual, kind="stable")
    scores = 2 * actual[order].cumsum() / (rows * np.arange(1, len(order) + 1) + actual.sum())  # micro F1 for each k
    best = int(scores.argmax())
    answer = _listed([f"'{names[index]}'" for index in order[: best + 1]])
    return _not_above(f1, "f1_micro", float(scores[best]), f"predicting {answer} for every row")


def _regression(actual: Array, error: MetricValue) -> list[str]:
    """Compare with always predicting the mean of the labels (N,), whose mean squared error is their variance."""
    variance = float(actual.var())
    if np.ptp(actual) == 0:
        return [_one_label(len(actual), f"the value {actual[0]:g}")]
    upper = error.value if error.high is None else error.high
    if upper is not None and upper < variance:
        return []
    return [
        f"mean_squared_error {_shown(error)} is not clearly below {variance:.3f}, the score of predicting the mean for "
        f"every row: the model may have learned nothing. {_TRY}"
    ]


def _not_above(score: MetricValue, metric: str, constant: float, answer: str) -> list[str]:
    """Return a warning unless the score is clearly above that of the constant answer."""
    lower = score.value if score.low is None else score.low
    if lower is not None and lower > constant:
        return []
    return [
        f"{metric} {_shown(score)} is not clearly above {constant:.3f}, the score of {answer}: the model may have "
        f"learned nothing. {_TRY}"
    ]


def _one_label(rows: int, what: str) -> str:
    return f"all {rows} rows have {what}, so the scores do not show whether the model distinguishes between rows"


def _never_predicted(predicted: Array, actual: Array, names: Sequence[str]) -> list[str]:
    """Return a warning about labels that occur but are never predicted, most frequent first; counts per label, (C,)."""
    missing = [index for index in np.argsort(-actual, kind="stable") if actual[index] and not predicted[index]]
    if not missing or not predicted.any():
        return []
    listed = _listed([f"'{names[index]}' ({actual[index]} row{'s' * int(actual[index] > 1)})" for index in missing])
    return [
        f"never predicted: {listed}, so their recall is 0. Try more training rows of these labels, or more epochs "
        "(training.num_train_epochs)"
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _shown(score: MetricValue) -> str:
    return f"{score.value:.3f} {score.interval()}".rstrip() if score.value is not None else "undefined"
