"""From logits to probabilities and labels, with numpy only: the same rules for PyTorch and for exported models.

N rows, C labels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.errors import DataError, ModelError
from finetune.models.conformal import ConformalScores, Limits, conformal_scores, scope_scores

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """The prediction for one text, or for one pair of texts.

    Attributes:
        label: the label's name; a tuple of names for `multi_label_classification`; the value for `regression`.
        probabilities: label name to probability, 0 to 1. They sum to 1 for `single_label_classification`, are
            independent of each other for `multi_label_classification`, and there are none for `regression`. With
            `top_k` they are those of the k most probable labels, highest first.
        labels: with a coverage, the prediction set: the names of no, one or several labels; else None.
        interval: with a coverage, for `regression`, the lower and the upper end of the interval; else None.
        in_scope: if this was requested, whether the text looks like the validation rows; else None.
    """

    label: str | tuple[str, ...] | float
    probabilities: dict[str, float]
    labels: tuple[str, ...] | None = None
    interval: tuple[float, float] | None = None
    in_scope: bool | None = None


@dataclass(frozen=True)
class OutputRules:
    """How logits become probabilities and labels.

    Attributes:
        label_names: in the order of the logits.
        problem_type: single_label_classification, multi_label_classification or regression.
        thresholds: the probability above which each label is predicted, (C,). None: 0.5 for
            `multi_label_classification`, and the most probable label for `single_label_classification`, where only some
            labels have a threshold, and the others None: the most probable label above its threshold is predicted, and
            if none is above, the most probable label without a threshold.
        temperature: logits are divided by it; see Guo et al. 2017, section 4.2.
        conformal: the scores of the validation rows, from which prediction sets follow; None if there are none.

    Raises:
        ModelError: thresholds or temperature are outside their range, or do not fit the labels.
    """

    label_names: tuple[str, ...]
    problem_type: str
    thresholds: tuple[float | None, ...] | None = None
    temperature: float = 1.0
    conformal: ConformalScores | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(f"the temperature of the model is {self.temperature}; it must be a number above 0")
        if self.thresholds is None:
            return
        if self.problem_type == "regression":
            raise ModelError("thresholds are for labels, and this model is regression")
        single_label = self.problem_type == "single_label_classification"
        numbers = [value for value in self.thresholds if value is not None]
        is_complete = len(self.thresholds) == len(self.label_names) and (single_label or None not in self.thresholds)
        if not is_complete or not all(0 <= value <= 1 for value in numbers):
            rule = "one from 0 to 1, or none," if single_label else "one from 0 to 1"
            raise ModelError(
                f"the thresholds of the model are {list(self.thresholds)[:5]}; there must be {rule} for each of its "
                f"{len(self.label_names)} labels"
            )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of logits (N, C) in float64; for regression the predicted values (N, 1)."""
        if self.problem_type == "regression":
            return logits.astype(np.float64)
        scaled = logits.astype(np.float64) / self.temperature
        if self.problem_type == "multi_label_classification":
            exponentials = np.exp(-np.abs(scaled))  # at most 1: no overflow
            return np.asarray(np.where(scaled >= 0, 1, exponentials) / (1 + exponentials))
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """Return label numbers (N,), which labels are predicted (N, C) as booleans, or values (N,)."""
        if self.problem_type == "regression":
            return probabilities[:, 0]
        if self.problem_type == "multi_label_classification":
            return np.asarray(probabilities > np.asarray(self.thresholds or DEFAULT_THRESHOLD))
        if self.thresholds is None:
            return np.asarray(probabilities.argmax(axis=1))
        limits = np.array([np.nan if value is None else value for value in self.thresholds])
        above, has_limit = probabilities > limits, np.isfinite(limits)  # nothing is above NaN
        others = probabilities if has_limit.all() else np.where(has_limit, -1.0, probabilities)
        is_any_above = np.asarray(above).any(axis=1, keepdims=True)
        return np.asarray(np.where(is_any_above, np.where(above, probabilities, -1.0), others).argmax(axis=1))

    def limits(
        self, coverage: float | None = None, *, per_class: bool = False, in_scope: float | None = None
    ) -> Limits:
        """Return what a label and a row must meet for a promised coverage.

        Args:
            coverage: the probability with which a prediction set contains the label, or an interval the value, of a
                new row like the validation rows; None: no sets.
            per_class: whether this must hold for the rows of each label.
            in_scope: the share of rows like the validation rows that must count as in scope; None: not computed.

        Raises:
            DataError: the model has no scores of validation rows, too few for this coverage, or several labels per row.
        """
        if per_class and coverage is None:
            raise DataError("a coverage per class needs a coverage; set it, such as to 0.9")
        if coverage is None and in_scope is None:
            return Limits()
        if self.problem_type == "multi_label_classification":
            raise DataError(
                "a coverage is for one label per row or a number, and this model predicts several labels per row; use "
                "the probabilities of its labels"
            )
        if self.problem_type == "regression" and (per_class or in_scope is not None):
            raise DataError("a coverage per class and in_scope are for labels, and this model predicts a number")
        if self.conformal is None:
            raise DataError(
                "the model has no scores of validation rows, which a coverage needs: it was trained without validation "
                "rows or by an earlier version, or it was pruned; train it with validation rows"
            )
        limits = None
        if coverage is not None and per_class:
            limits = self.conformal.limits_per_label(coverage, self.label_names)
        elif coverage is not None:
            limits = np.full(len(self.conformal.errors), self.conformal.limit(coverage))
        return Limits(limits, None if in_scope is None else self.conformal.scope_limit(in_scope))

    def with_scores_of(self, logits: np.ndarray, labels: np.ndarray, *, seed: int) -> OutputRules:
        """Return rules with the scores of validation rows.

        Args:
            logits: of the validation rows, (N, C).
            labels: class ids (N,), or values (N,) in regression.
            seed: of the choice of rows, if there are very many.
        """
        scores = conformal_scores(self.probabilities(logits), scope_scores(logits), labels, seed=seed)
        return replace(self, conformal=scores)

    def predictions(
        self, logits: np.ndarray, *, top_k: int | None = None, limits: Limits | None = None
    ) -> list[Prediction]:
        """Return one prediction per row of the logits (N, C).

        Args:
            top_k: number of probabilities to keep, highest first; None: all, in the order of the labels.
            limits: for prediction sets, see `limits`; None: no sets.

        Raises:
            DataError: `top_k` is below 1.
        """
        probabilities, limits = self.probabilities(logits), limits or Limits()
        decided = self.decisions(probabilities).tolist()
        if self.problem_type == "regression":
            if limits.error is None:
                return [Prediction(value, {}) for value in decided]
            half = float(limits.error[0])
            return [Prediction(value, {}, interval=(value - half, value + half)) for value in decided]
        order = most_probable(probabilities, top_k)
        chosen = probabilities if order is None else np.take_along_axis(probabilities, order, axis=1)
        names = self.label_names
        by_label = [
            dict(zip(names if order is None else [names[index] for index in order[row]], values, strict=True))
            for row, values in enumerate(chosen.tolist())
        ]
        labels = [_label(names, value) for value in decided]
        unknown = [None] * len(labels)
        sets = limits.label_sets(probabilities)
        set_names = unknown if sets is None else [_names(names, row) for row in sets.tolist()]
        in_scope = limits.in_scope(logits)
        return [
            Prediction(label, values, labels=label_set, in_scope=inside)
            for label, values, label_set, inside in zip(
                labels, by_label, set_names, unknown if in_scope is None else in_scope.tolist(), strict=True
            )
        ]


def most_probable(probabilities: np.ndarray, top_k: int | None) -> np.ndarray | None:
    """Return the numbers of the `top_k` most probable labels per row, highest first, (N, k); None if it is None.

    Raises:
        DataError: `top_k` is below 1.
    """
    if top_k is None:
        return None
    if top_k < 1:
        raise DataError(f"top_k is {top_k}; it must be at least 1")
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]


def _label(names: Sequence[str], decided: int | list[bool]) -> str | tuple[str, ...]:
    """Return the name of a label number, or the names of the predicted labels."""
    return _names(names, decided) if isinstance(decided, list) else names[decided]


def _names(names: Sequence[str], chosen: list[bool]) -> tuple[str, ...]:
    """Return the names that are chosen."""
    return tuple(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
