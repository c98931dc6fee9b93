"""Warnings where a model scores no better than one answer for every row, which needs no model.

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
    """Return what speaks against the model having learned anything: what was seen, what it means, what to try.

    A score counts as better than the best constant answer if its whole interval is; where it has no interval, if its
    value is. A label that rows carry and the model never predicts is reported as well.

    Args:
        predictions: ids (N,), 0/1 sets (N, C), or values (N,) of regression.
        references: the same of the labels.
        label_names: of the C classes; without any the labels are values of a regression.
        metrics: every metric of the problem type.
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
    """Compare with the most frequent class; `actual`: rows per class, (C,)."""
    rows, most = int(actual.sum()), int(actual.argmax())
    if actual[most] == rows:
        return [_one_label(rows, f"the label '{names[most]}'")]
    return _not_above(accuracy, "accuracy", actual[most] / rows, f"the answer '{names[most]}' for every row")


def _multi_label(predicted: Array, actual: Array, rows: int, names: Sequence[str], f1: MetricValue) -> list[str]:
    """Compare with the best set of labels for every row: the k most frequent; counts per label, (C,)."""
    if not predicted.any():
        return [
            "no row was given any label, as no probability exceeds 0.5: the model has not learned to recognize one. "
            "Try more epochs (training.num_train_epochs), a higher training.learning_rate, or more training rows"
        ]
    order = np.argsort(-actual, kind="stable")
    scores = 2 * actual[order].cumsum() / (rows * np.arange(1, len(order) + 1) + actual.sum())  # micro F1 by k
    best = int(scores.argmax())
    given = _listed([f"'{names[index]}'" for index in order[: best + 1]])
    return _not_above(f1, "f1_micro", float(scores[best]), f"giving every row {given}")


def _regression(actual: Array, error: MetricValue) -> list[str]:
    """Compare with the mean of the labels (N,), whose squared error is their variance: R2 is 0 there."""
    variance = float(actual.var())
    if np.ptp(actual) == 0:
        return [_one_label(len(actual), f"the value {actual[0]:g}")]
    highest = error.value if error.high is None else error.high
    if highest is not None and highest < variance:
        return []
    return [
        f"mean_squared_error {_shown(error)} is not clearly below {variance:.3f}, which predicting the mean for every "
        f"row scores: the model may have learned nothing. {_TRY}"
    ]


def _not_above(score: MetricValue, metric: str, constant: float, answer: str) -> list[str]:
    lowest = score.value if score.low is None else score.low
    if lowest is not None and lowest > constant:
        return []
    return [
        f"{metric} {_shown(score)} is not clearly above {constant:.3f}, which {answer} scores: the model may have "
        f"learned nothing. {_TRY}"
    ]


def _one_label(rows: int, what: str) -> str:
    return f"all {rows} rows carry {what}, so the scores do not show whether the model tells rows apart"


def _never_predicted(predicted: Array, actual: Array, names: Sequence[str]) -> list[str]:
    missed = [index for index in np.argsort(-actual, kind="stable") if actual[index] and not predicted[index]]
    if not missed or not predicted.any():
        return []
    listed = _listed([f"'{names[index]}' ({actual[index]} row{'s' * int(actual[index] > 1)})" for index in missed])
    return [
        f"never predicted: {listed}, so their recall is 0. Try more training rows of these labels, or more epochs "
        "(training.num_train_epochs)"
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _shown(score: MetricValue) -> str:
    return f"{score.value:.3f} {score.interval()}".rstrip() if score.value is not None else "undefined"
