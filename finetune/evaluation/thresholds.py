"""Thresholds of the labels, tuned on validation rows, and what they gain on rows that did not tune them.

A label is predicted if its probability exceeds its threshold. With several labels per row every label has a threshold;
with one label per row a rare class can have one.

    N rows, K labels that get a threshold
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.paired_differences import paired_differences
from finetune.evaluation.prediction import Predictions
from finetune.runs.outputs import FittedThresholds
from finetune.runs.results import MetricValue

Array = NDArray[Any]
# A threshold of a label moves towards the common one of all labels, by 20 / (20 + rows with the label). On NLU++ (62
# labels, 310 validation rows, 60 random halves), the micro F1 after training on 300 rows rose by 0.026 with 20, 0.024
# with 10 and 0.024 with the common threshold alone; with a threshold per label without this it fell by 0.080.
SHRINKAGE_ROWS = 20
FOLDS = 5
# In simulations of a label with 4, 10, 25 and 50 rows, the 95 % interval of the gain covered 87, 89, 92 and 94 %.
MIN_LABELS = 20
_SMALLEST = 1e-12  # probability with finite log-odds; overconfident models give rows of a rare label 1e-8


@dataclass(frozen=True)
class Goal:
    """What thresholds are tuned for: the highest F1, or at least a precision or recall of `value`."""

    kind: Literal["f1", "precision", "recall"]
    value: float = 0.0

    def text(self) -> str:
        """Return the goal in words."""
        return "the highest F1" if self.kind == "f1" else f"a {self.kind} of at least {self.value:g}"


@dataclass(frozen=True)
class Tuned:
    """Thresholds, and which labels have the common threshold because they have too few rows for the goal, (K,)."""

    values: Array
    common: Array


@dataclass(frozen=True)
class Columns:
    """The labels that get a threshold.

    Attributes:
        names: their names, (K,).
        probabilities: (N, K).
        labels: which of them each row has, as 0 and 1, (N, K).
        default: which of them are predicted without tuned thresholds, (N, K).
    """

    names: Sequence[str]
    probabilities: Array
    labels: Array
    default: Array


def fit_thresholds(columns: Columns, goal: Goal, *, metric: str, seed: int) -> FittedThresholds:
    """Return thresholds that were tuned on these rows, and the cross-fitted change of the metric.

    Cross-fitted: each fifth of the rows is decided by thresholds that were tuned on the other four fifths, so that no
    row judges a threshold that it tuned.

    Args:
        metric: f1_micro, f1_macro or f1_weighted, over these labels.
    """
    labels, names = columns.labels, columns.names
    tuned = tune(columns.probabilities, labels, goal)
    decided = cross_fitted_decisions(columns.probabilities, labels, goal, seed)
    pair = (columns.default.astype(int), decided.astype(int))
    hits, predicted, actual = (int(part.sum()) for part in (decided & (labels == 1), decided, labels))
    return FittedThresholds(
        goal=goal.text(),
        values={name: float(value) for name, value in zip(names, tuned.values, strict=True)},
        metric=metric,
        gain=_gain(pair, labels, metric),
        precision=hits / predicted if predicted else None,
        recall=hits / actual if actual else None,
        notes=_notes(tuned, labels, names, goal),
    )


def threshold_gain(predictions: Predictions, *, metric: str) -> MetricValue | None:
    """Return F1 with the thresholds of the rules minus F1 without, for the labels that have one; None if none has."""
    rules = predictions.rules
    if rules.thresholds is None:
        return None
    probabilities = rules.probabilities(predictions.logits.numpy())
    default = replace(rules, thresholds=None).decisions(probabilities)
    pair, labels = (default, rules.decisions(probabilities)), predictions.labels
    if rules.problem_type == "single_label_classification":
        named = np.array([index for index, value in enumerate(rules.thresholds) if value is not None])
        pair = (pair[0][:, None] == named, pair[1][:, None] == named)
        labels = labels[:, None] == named
    pair = (pair[0].astype(int), pair[1].astype(int))
    return _gain(pair, labels.astype(int), metric)


def _gain(pair: tuple[Array, Array], labels: Array, metric: str) -> MetricValue:
    """Return the metric of the second decisions minus that of the first, with its interval if it would cover."""
    gain = paired_differences(pair, labels, [metric], num_classes=labels.shape[1])[metric]
    if labels.sum() >= MIN_LABELS or gain.note:
        return gain
    return MetricValue(gain.value, note=f"no interval: fewer than {MIN_LABELS} labels in these rows")


def tune(probabilities: Array, labels: Array, goal: Goal) -> Tuned:
    """Return a threshold per label, (K,).

    - f1: the threshold with the highest F1 of the label, moved on the scale of log-odds towards the one with the
      highest micro F1 of all labels, because a label with few rows tells little.
    - recall R: of n rows with the label, the k-th lowest probability with k = floor((1 - R) (n + 1)); a new row with
      the label reaches it with a probability of at least R (the quantile of split conformal prediction, Vovk et al.
      2005).
    - precision P: the lowest threshold at which hits / (predicted + 1) is at least P. The added row makes up for the
      choice of the best of many thresholds.

    A label for which no threshold reaches the precision or recall gets the one for the counts of all labels together.
    """
    common, is_reached = _threshold(probabilities.ravel(), labels.ravel(), goal)
    values, uses_common = np.full(labels.shape[1], common), np.zeros(labels.shape[1], bool)
    for index in range(labels.shape[1]):
        own, own_is_reached = _threshold(probabilities[:, index], labels[:, index], goal, near=common)
        if goal.kind == "f1":
            rows = labels[:, index].sum()
            weight = rows / (rows + SHRINKAGE_ROWS) if labels.shape[1] > 1 else 1.0
            values[index] = _sigmoid(weight * _log_odds(own) + (1 - weight) * _log_odds(common))
        elif own_is_reached:
            values[index] = own
        else:
            uses_common[index] = True
    return Tuned(values, uses_common if is_reached else np.ones(labels.shape[1], bool))


def cross_fitted_decisions(probabilities: Array, labels: Array, goal: Goal, seed: int) -> Array:
    """Return which labels are predicted, (N, K), each fold of the rows by thresholds tuned on the other folds."""
    decided = np.zeros(labels.shape, bool)
    folds = _folds(labels, seed)
    for fold in range(FOLDS):
        held_out = folds == fold
        values = tune(probabilities[~held_out], labels[~held_out], goal).values
        decided[held_out] = probabilities[held_out] > values
    return decided


def _folds(labels: Array, seed: int) -> Array:
    """Return the fold of each row, (N,); rows with the same first label are spread evenly over the folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    first = np.where(labels.any(1), labels.argmax(1), -1)
    order = order[np.argsort(first[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % FOLDS
    return folds


def _threshold(probabilities: Array, labels: Array, goal: Goal, near: float = 0.5) -> tuple[float, bool]:
    """Return the threshold for 0/1 labels (N,), and whether it reaches the goal.

    Args:
        near: of several equally good thresholds, the one nearest to this one is returned.
    """
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ends = np.append(np.flatnonzero(ordered[1:] < ordered[:-1]), len(ordered) - 1)  # last row of each probability
    hits, predicted = np.append(0, np.cumsum(labels[order])[ends]), np.append(0, ends + 1)
    bounds = np.concatenate([[1.0], ordered[ends], [0.0]])
    thresholds = _sigmoid((_log_odds(bounds[:-1]) + _log_odds(bounds[1:])) / 2)  # between two probabilities
    actual = int(labels.sum())
    if goal.kind == "f1":
        scores = 2 * hits / np.maximum(predicted + actual, 1)
        best = np.flatnonzero(scores >= scores.max() - 1e-12)
        nearest = np.abs(_log_odds(thresholds[best]) - _log_odds(near)).argmin()
        return float(thresholds[best[nearest]]), actual > 0
    if goal.kind == "recall":
        missed = int((1 - goal.value) * (actual + 1) + 1e-9)  # rows with the label that may be below the threshold
        first = int(np.flatnonzero(hits >= actual - max(missed - 1, 0))[0])
        return float(thresholds[first]), missed >= 1
    scores = hits / (predicted + 1)
    reached = np.flatnonzero(scores >= goal.value)
    return float(thresholds[reached[-1] if len(reached) else scores.argmax()]), len(reached) > 0


def _notes(tuned: Tuned, labels: Array, names: Sequence[str], goal: Goal) -> list[str]:
    """Return what the thresholds do not promise."""
    if goal.kind == "f1" or not tuned.common.any():
        return []
    few = [name for name, is_common in zip(names, tuned.common, strict=True) if is_common]
    if len(names) == 1:
        rows = int(labels.sum())
        return [f"the {rows} validation rows with '{names[0]}' are too few, or too hard, to reach {goal.text()}"]
    if len(few) == len(names):
        return [f"no threshold reaches {goal.text()} on the validation rows; the nearest one is used for every label"]
    listed = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
    return [
        f"{len(few)} of {len(names)} labels have too few rows, or are too hard, to reach {goal.text()}, and use the "
        f"threshold that reaches it over all labels together: {listed}"
    ]


def _log_odds(probabilities: Array | float) -> Array:
    limited = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(limited / (1 - limited)))


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))
