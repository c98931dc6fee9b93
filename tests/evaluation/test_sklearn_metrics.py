"""scikit-learn's metrics: every name of the table has a function, directions, undefined values, row weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from finetune.evaluation.scored_rows import ScoredRows, UndefinedMetricError
from finetune.evaluation.sklearn_metrics import compute, has_row_weights, of_weights
from finetune.recipe.named_metrics import SKLEARN_METRICS, find_metric, names_and_descriptions
from tests.support.metric_rows import scored_rows

BINARY, REGRESSION = scored_rows("single_label_classification", classes=2), scored_rows("regression")


def perfect(rows: ScoredRows) -> ScoredRows:
    """Return the rows with their labels as predictions."""
    if rows.problem_type == "regression":
        return replace(rows, predicted=rows.labels)
    return replace(rows, predicted=rows.labels, probabilities=rows.indicators.astype(float))


@pytest.mark.parametrize("problem_type", SKLEARN_METRICS)
def test_every_metric_is_better_for_perfect_predictions(problem_type: str) -> None:
    rows = scored_rows(problem_type, classes=5)
    names = [name for name in names_and_descriptions(problem_type) if name in SKLEARN_METRICS[problem_type]]
    names += [] if problem_type == "regression" else ["f2_macro", "f0.5_micro"]
    names += ["top_1_accuracy", "top_2_accuracy"] if problem_type == "single_label_classification" else []
    for name in names:
        metric = find_metric(name, problem_type)
        assert metric is not None
        value, best = compute(name, rows), compute(name, perfect(rows))
        assert (best < value) if metric.lower_is_better else (best > value), name
        if metric.bounds is not None:
            assert metric.bounds[0] <= value <= metric.bounds[1], name
            assert best == pytest.approx(0 if metric.lower_is_better else 1, abs=1e-6), name
    assert len(names) > 10


@pytest.mark.parametrize("problem_type", SKLEARN_METRICS)
def test_row_weights_repeat_rows(problem_type: str) -> None:
    """A row with weight 2 counts like two rows: also in the faster functions for the bootstrap."""
    for classes in (2, 5):
        rows = scored_rows(problem_type, rows=30, classes=classes)
        weights = np.random.default_rng(1).integers(1, 4, len(rows))
        repeated = rows.select(np.repeat(np.arange(len(rows)), weights))
        names = [*SKLEARN_METRICS[problem_type], *(["f2_macro"] if problem_type != "regression" else [])]
        for name in names:
            if has_row_weights(name) and name != "median_absolute_error":  # of weighted values it is another median
                assert of_weights(name, rows)(weights.astype(float)) == pytest.approx(compute(name, repeated)), name
                assert of_weights(name, rows)(np.ones(len(rows))) == pytest.approx(compute(name, rows)), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roc_auc", metrics.roc_auc_score(BINARY.labels, BINARY.scores[:, 1])),
        ("average_precision", metrics.average_precision_score(BINARY.labels, BINARY.scores[:, 1])),
        ("brier_score", metrics.brier_score_loss(BINARY.labels, BINARY.scores[:, 1])),
        ("log_loss", metrics.log_loss(BINARY.labels, BINARY.scores[:, 1])),
        ("cohen_kappa", metrics.cohen_kappa_score(BINARY.labels, BINARY.predicted)),
        ("f2_macro", metrics.fbeta_score(BINARY.labels, BINARY.predicted, beta=2, average="macro")),
        ("top_1_accuracy", metrics.accuracy_score(BINARY.labels, BINARY.scores.argmax(1))),
    ],
)
def test_values_are_those_of_sklearn(name: str, expected: float) -> None:
    assert compute(name, BINARY) == pytest.approx(expected)


ONE_CLASS = BINARY.select(np.flatnonzero(BINARY.labels == 0))
THREE = scored_rows("single_label_classification")


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("roc_auc", ONE_CLASS, "Only one class is present in y_true"),
        ("average_precision", ONE_CLASS, "no row has the label 'label 1'"),
        ("roc_auc", THREE.select(np.flatnonzero(THREE.labels < 2)), "no row has the label 'label 2'"),
        ("cohen_kappa", replace(ONE_CLASS, predicted=ONE_CLASS.labels), "only one label"),
        ("r2", replace(REGRESSION, labels=np.ones(40)), "all labels of the rows are equal"),
        ("r2", REGRESSION.select(np.array([0])), "all labels of the rows are equal"),
        ("mean_squared_log_error", replace(REGRESSION, predicted=-REGRESSION.labels - 2), "Mean Squared Logarithmic"),
        ("top_3_accuracy", THREE, "with 3 labels it is 1 for every model; choose a number below 3"),
        ("log_loss", replace(BINARY, probabilities=None), "it needs probabilities"),
    ],
)
def test_undefined_metrics_say_why(name: str, rows: ScoredRows, reason: str) -> None:
    with pytest.raises(UndefinedMetricError, match=reason):
        compute(name, rows)


def test_a_class_without_predictions_has_precision_0() -> None:
    rows = replace(BINARY, predicted=np.zeros(40, dtype=int))
    assert compute("precision_macro", rows) == pytest.approx(0.25)
