from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from finetune.evaluation.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    OFFLINE_METRICS,
    REGRESSION,
    compute_metrics,
    confusion_matrix,
    counts_of_confusion,
    defined,
    f1,
    precision,
    recall,
)
from finetune.recipe import METRICS


def test_tables_name_what_recipes_may_ask_for() -> None:
    tables = {"single_label_classification": CLASSIFICATION, "multi_label_classification": MULTI_LABEL}
    assert {name: tuple(table) for name, table in tables.items()} | {"regression": tuple(REGRESSION)} == METRICS
    assert OFFLINE_METRICS.keys() == METRICS.keys()


pairs = st.integers(1, 40).flatmap(
    lambda rows: st.tuples(
        *(st.lists(st.integers(0, 3), min_size=rows, max_size=rows) for _ in range(2)),
    )
)


@given(pairs)
def test_classification_equals_sklearn(rows: tuple[list[int], list[int]]) -> None:
    predicted, actual = (np.array(part) for part in rows)
    found = compute_metrics(predicted, actual, "single_label_classification", 4)
    options: dict[str, Any] = {"zero_division": 0.0}
    assert found == pytest.approx(
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
        return 0.0  # undefined; scikit-learn says 0 as well, with a warning in some of these cases
    return float(sklearn_metrics.matthews_corrcoef(actual, predicted))


sets = st.integers(1, 12).flatmap(
    lambda rows: st.tuples(
        *(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=rows, max_size=rows) for _ in range(2))
    )
)


@given(sets)
@example(([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]]))  # a label that never occurs counts as 0: macro F1 is 2/3
@example(([[0, 0, 0]] * 3, [[1, 0, 0]] * 3))  # nothing predicted
@example(([[1, 0, 1]] * 3, [[0, 0, 0]] * 3))  # no row has a label
@example(([[0, 0, 0]] * 3, [[0, 0, 0]] * 3))
def test_multi_label_equals_sklearn(rows: tuple[list[list[int]], list[list[int]]]) -> None:
    predicted, actual = (np.array(part) for part in rows)
    found = compute_metrics(predicted, actual, "multi_label_classification", 3)
    expected = {
        f"f1_{kind}": sklearn_metrics.f1_score(actual, predicted, average=kind, zero_division=0.0)
        for kind in ("micro", "macro", "weighted")
    }
    assert found == pytest.approx({**expected, "subset_accuracy": sklearn_metrics.accuracy_score(actual, predicted)})


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [
        ([0, 1, 1], [0, 1, 2]),  # a label that is never predicted
        ([0, 1, 2], [0, 1, 1]),  # a prediction that is no row's label
        ([0, 0, 0], [0, 0, 0]),  # one class alone
        ([3, 3, 3], [0, 1, 2]),  # nothing right
        ([0, 0, 0], [0, 1, 1]),
        ([2], [2]),
    ],
)
def test_per_class_scores_equal_sklearn(predicted: list[int], actual: list[int]) -> None:
    found = compute_metrics(np.array(predicted), np.array(actual), "single_label_classification", 4)
    counts = counts_of_confusion(confusion_matrix(np.array(predicted), np.array(actual), 4))
    table = sklearn_metrics.precision_recall_fscore_support(actual, predicted, labels=range(4), zero_division=0.0)
    for function, expected in zip((precision, recall, f1), table[:3], strict=True):
        np.testing.assert_allclose(function(counts), expected)
    assert counts.actual.tolist() == table[3].tolist()
    assert found["f1_macro"] == pytest.approx(
        sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0.0)
    )


def test_regression_equals_sklearn_and_scipy() -> None:
    predicted, actual = np.random.default_rng(0).normal(size=(2, 50))
    found = compute_metrics(predicted, actual, "regression", 1)
    assert found == pytest.approx(
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
def test_a_correlation_without_spread_is_undefined(predicted: list[float], actual: list[float]) -> None:
    found = compute_metrics(np.array(predicted), np.array(actual), "regression", 1)
    assert {name for name, value in found.items() if np.isnan(value)} == {"pearson", "spearman"}
    assert defined(found["pearson"]) is None
    assert defined(found["mean_squared_error"]) == sklearn_metrics.mean_squared_error(actual, predicted)
