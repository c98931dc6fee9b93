"""The values of all metrics: finetune/evaluation/metric_formulas.py and metrics.py."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    confusion_matrix,
    counts_of_confusion,
    f1,
    none_if_undefined,
    precision,
    recall,
)
from finetune.evaluation.metrics import OFFLINE_METRICS, compute_metrics
from finetune.recipe.named_metrics import lower_is_better
from finetune.recipe.names import METRICS, ProblemType

FORMULAS = {
    "single_label_classification": SINGLE_LABEL,
    "multi_label_classification": MULTI_LABEL,
    "regression": REGRESSION,
}


def test_every_metric_name_has_a_formula_and_every_formula_a_name() -> None:
    assert {average: list(table) for average, table in FORMULAS.items()} == {
        average: list(table) for average, table in METRICS.items()
    }
    assert OFFLINE_METRICS.keys() == METRICS.keys() == set(get_args(ProblemType))
    for problem_type, table in METRICS.items():
        sets = problem_type == "multi_label_classification"
        rows = np.array([[1, 0], [0, 1]]) if sets else np.array([0, 1])
        assert compute_metrics(rows, rows, problem_type, 2).keys() == table.keys()


def test_perfect_predictions_have_the_better_score() -> None:
    """The direction in the table of names is the direction of the formula."""
    compared = 0
    for problem_type, table in METRICS.items():
        actual = np.array([0, 1, 1, 2])
        wrong = np.array([2, 0, 1, 0])
        if problem_type == "multi_label_classification":
            actual, wrong = np.eye(3, dtype=int)[actual], np.eye(3, dtype=int)[wrong]
        best, worse = (compute_metrics(rows, actual, problem_type, 3) for rows in (actual, wrong))
        for name, metric in table.items():
            assert (best[name] < worse[name]) == metric.lower_is_better == lower_is_better(name), name
            compared += 1
    assert compared >= 13
    assert lower_is_better("loss")


pairs = st.integers(1, 40).flatmap(
    lambda rows: st.tuples(
        *(st.lists(st.integers(0, 3), min_size=rows, max_size=rows) for _ in range(2)),
    )
)


@given(pairs)
def test_classification_equals_sklearn(rows: tuple[list[int], list[int]]) -> None:
    predicted, actual = (np.array(part) for part in rows)
    scores = compute_metrics(predicted, actual, "single_label_classification", 4)
    options: dict[str, Any] = {"zero_division": 0.0}
    assert scores == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(actual, predicted),
            "f1_macro": sklearn_metrics.f1_score(actual, predicted, average="macro", **options),
            "f1_micro": sklearn_metrics.f1_score(actual, predicted, average="micro", **options),
            "f1_weighted": sklearn_metrics.f1_score(actual, predicted, average="weighted", **options),
            "matthews_correlation": _matthews(actual, predicted),
        }
    )


def _matthews(actual: np.ndarray, predicted: np.ndarray) -> float:
    if len(np.unique(actual)) == 1 or len(np.unique(predicted)) == 1:
        return 0.0  # undefined; scikit-learn returns 0 too, with a warning in some of these cases
    return float(sklearn_metrics.matthews_corrcoef(actual, predicted))


sets = st.integers(1, 12).flatmap(
    lambda rows: st.tuples(
        *(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=rows, max_size=rows) for _ in range(2))
    )
)


@given(sets)
@example(([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]]))  # a label that never occurs has F1 0: macro F1 is 2/3
@example(([[0, 0, 0]] * 3, [[1, 0, 0]] * 3))  # nothing predicted
@example(([[1, 0, 1]] * 3, [[0, 0, 0]] * 3))  # no row has a label
@example(([[0, 0, 0]] * 3, [[0, 0, 0]] * 3))
def test_multi_label_equals_sklearn(rows: tuple[list[list[int]], list[list[int]]]) -> None:
    predicted, actual = (np.array(part) for part in rows)
    scores = compute_metrics(predicted, actual, "multi_label_classification", 3)
    expected = {
        f"f1_{average}": sklearn_metrics.f1_score(actual, predicted, average=average, zero_division=0.0)
        for average in ("micro", "macro", "weighted")
    }
    assert scores == pytest.approx({**expected, "subset_accuracy": sklearn_metrics.accuracy_score(actual, predicted)})


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [
        ([0, 1, 1], [0, 1, 2]),  # a label that is never predicted
        ([0, 1, 2], [0, 1, 1]),  # a prediction that no row has as its label
        ([0, 0, 0], [0, 0, 0]),  # only one class
        ([3, 3, 3], [0, 1, 2]),  # no prediction is correct
        ([0, 0, 0], [0, 1, 1]),
        ([2], [2]),
    ],
)
def test_per_class_scores_equal_sklearn(predicted: list[int], actual: list[int]) -> None:
    scores = compute_metrics(np.array(predicted), np.array(actual), "single_label_classification", 4)
    counts = counts_of_confusion(confusion_matrix(np.array(predicted), np.array(actual), 4))
    table = sklearn_metrics.precision_recall_fscore_support(actual, predicted, labels=range(4), zero_division=0.0)
    for function, expected in zip((precision, recall, f1), table[:3], strict=True):
        np.testing.assert_allclose(function(counts), expected)
    assert counts.actual.tolist() == table[3].tolist()
    assert scores["f1_macro"] == pytest.approx(
        sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0.0)
    )


def test_regression_equals_sklearn_and_scipy() -> None:
    predicted, actual = np.random.default_rng(0).normal(size=(2, 50))
    scores = compute_metrics(predicted, actual, "regression", 1)
    assert scores == pytest.approx(
        {
            "mean_squared_error": sklearn_metrics.mean_squared_error(actual, predicted),
            "mean_absolute_error": sklearn_metrics.mean_absolute_error(actual, predicted),
            "pearson": stats.pearsonr(actual, predicted)[0],
            "spearman": stats.spearmanr(actual, predicted)[0],
        }
    )


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]), ([2.0] * 3, [2.0] * 3), ([1.0], [2.0])],
    ids=["equal predictions", "equal labels", "both", "one row"],
)
def test_the_correlation_of_constant_values_is_undefined(predicted: list[float], actual: list[float]) -> None:
    scores = compute_metrics(np.array(predicted), np.array(actual), "regression", 1)
    assert {name for name, value in scores.items() if np.isnan(value)} == {"pearson", "spearman"}
    assert none_if_undefined(scores["pearson"]) is None
    assert none_if_undefined(scores["mean_squared_error"]) == sklearn_metrics.mean_squared_error(actual, predicted)
