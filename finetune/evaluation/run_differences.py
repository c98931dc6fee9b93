"""The difference of two runs, or of two series of runs, on the same rows.

N rows, C classes, S runs, X values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.evaluation.intervals import Array, interval_note
from finetune.evaluation.metric_formulas import f1, none_if_undefined, recall
from finetune.evaluation.named_differences import named_difference
from finetune.evaluation.paired_differences import scores_and_covariances
from finetune.evaluation.paired_tests import mcnemar_p_value, row_f1, wilcoxon_p_value
from finetune.evaluation.scored_rows import ScoredRows
from finetune.evaluation.two_level_interval import difference_interval, difference_p_value
from finetune.recipe.named_metrics import is_toolkit_metric
from finetune.runs.comparison import ClassDifference, MetricDifference, PairedTest, SplitDifference
from finetune.runs.results import MetricValue


@dataclass(frozen=True)
class DifferenceSettings:
    """What is compared, and how often rows are resampled.

    Attributes:
        metrics: the metrics to report, of the toolkit or of scikit-learn.
        metric: the metric that series are tested by.
        label_names: in the order of the class ids; empty in regression.
        samples: number of bootstrap resamples, for metrics of scikit-learn.
    """

    metrics: Sequence[str]
    metric: str
    label_names: Sequence[str]
    samples: int
    seed: int


@dataclass(frozen=True)
class Sides:
    """Which rows two runs predict correctly.

    Attributes:
        first, second: the share of the seeds that predict the row correctly, (N,); 0 or 1 for a single run.
        gained, lost: whether more than half of the seeds of only the second, or only the first, predict it, (N,).
    """

    first: Array
    second: Array
    gained: Array
    lost: Array


def difference_on_rows(
    first: Sequence[Array],
    second: Sequence[Array],
    references: Array,
    settings: DifferenceSettings,
    probabilities: Sequence[Array | None] | None = None,
) -> SplitDifference:
    """Return second minus first in all metrics and classes, the test that matches, and the rows that changed sides.

    Args:
        first, second: the predictions of each run of a series, or of one run: class ids (N,), 0/1 label sets (N, C) or
            values (N,).
        references: the labels in the same form.
        probabilities: of each run of the first and of the second, (N, C); None: they are not known.
    """
    models = [*first, *second]
    own = [name for name in settings.metrics if is_toolkit_metric(name, problem_type_of(references))]
    values, covariances = _values(models, references, replace(settings, metrics=own))
    count = len(first)
    pairs = [(column[:count], column[count:]) for column in values.T]
    differences = [difference_interval(pair, matrix) for pair, matrix in zip(pairs, covariances, strict=True)]
    metrics = {
        name: MetricDifference(none_if_undefined(left.mean()), none_if_undefined(right.mean()), difference)
        for name, (left, right), difference in zip(own, pairs, differences, strict=False)
    }
    p_values = {
        name: difference_p_value(pair, matrix) for name, pair, matrix in zip(own, pairs, covariances, strict=False)
    }
    rows = _scored_rows(models, references, settings.label_names, probabilities or [None] * len(models))
    for name in settings.metrics:
        if name not in own:
            named = named_difference(rows[:count], rows[count:], name, samples=settings.samples, seed=settings.seed)
            metrics[name], p_values[name] = named.metric, named.p_value
    if len(models) == 2:
        test: PairedTest | None = _row_test(models[0], models[1], references)
    else:
        test = _series_test(settings.metric, p_values[settings.metric])
    sides = None if references.dtype.kind == "f" else compare_sides(first, second, references)
    note = interval_note(len(references))
    return SplitDifference(
        rows=len(references),
        metrics={name: metrics[name] for name in settings.metrics},
        test=test,
        classes=_classes(differences[len(own) :], references, settings.label_names),
        gained=None if sides is None else int(sides.gained.sum()),
        lost=None if sides is None else int(sides.lost.sum()),
        notes=[f"{note[0].upper()}{note[1:]}."] if note else [],
    )


def problem_type_of(references: Array) -> str:
    """Return the problem type of labels: class ids (N,), 0/1 label sets (N, C) or values (N,)."""
    if references.dtype.kind == "f":
        return "regression"
    return "single_label_classification" if references.ndim == 1 else "multi_label_classification"


def _scored_rows(
    models: Sequence[Array], references: Array, label_names: Sequence[str], probabilities: Sequence[Array | None]
) -> list[ScoredRows]:
    names = tuple(label_names) or ("value",)
    return [
        ScoredRows(references, model, scores, names, problem_type_of(references))
        for model, scores in zip(models, probabilities, strict=True)
    ]


def compare_sides(first: Sequence[Array], second: Sequence[Array], references: Array) -> Sides:
    """Return which rows are predicted correctly by each of two runs or series; a label set must be right as a whole."""
    shares = [
        np.mean([(model == references).reshape(len(references), -1).all(-1) for model in models], axis=0)
        for models in (first, second)
    ]
    right = [share > 0.5 for share in shares]
    return Sides(shares[0], shares[1], gained=~right[0] & right[1], lost=right[0] & ~right[1])


def _values(models: Sequence[Array], references: Array, settings: DifferenceSettings) -> tuple[Array, Array]:
    """Return the metrics, then the recall and the F1 of each class, (S, X), and the covariance of each, (S, S)."""
    count = max(1, len(settings.label_names))
    values, covariances = scores_and_covariances(models, references, settings.metrics, count, (recall, f1))
    return values, np.full_like(covariances, np.nan) if interval_note(len(references)) else covariances


def _classes(
    differences: Sequence[MetricValue], references: Array, label_names: Sequence[str]
) -> list[ClassDifference]:
    """Return the differences per class, from those in recall and then those in F1."""
    if not differences:
        return []
    classes = len(label_names)
    support = np.bincount(references, minlength=classes) if references.ndim == 1 else references.sum(0)
    return [
        ClassDifference(name, int(support[index]), differences[index], differences[classes + index])
        for index, name in enumerate(label_names)
    ]


def _row_test(first: Array, second: Array, references: Array) -> PairedTest:
    """Return the test of two single runs, on the rows."""
    if references.dtype.kind == "f":
        name, subject = "Wilcoxon's signed-rank test", "absolute errors of the rows"
        p_value = wilcoxon_p_value(np.abs(second - references) - np.abs(first - references))
    elif references.ndim == 2:
        name, subject = "Wilcoxon's signed-rank test", "F1 scores of the rows"
        p_value = wilcoxon_p_value(row_f1(second, references) - row_f1(first, references))
    else:
        name, subject = "McNemar's exact test", "right and wrong rows"
        sides = compare_sides([first], [second], references)
        p_value = mcnemar_p_value(int(sides.lost.sum()), int(sides.gained.sum()))
    return PairedTest(name, subject, p_value, p_value)


def _series_test(metric: str, p_value: float | None) -> PairedTest | None:
    """Return the test of a series: that of the interval, because a test of the rows alone would ignore the seeds."""
    return None if p_value is None else PairedTest("t-test over seeds and rows", metric, p_value, p_value)
