from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from finetune.metrics import CLASSIFICATION, MULTI_LABEL, OFFLINE_METRICS, REGRESSION, compute_metrics
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


def test_multi_label_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    predicted, actual = rng.integers(0, 2, (2, 50, 6))
    found = compute_metrics(predicted, actual, "multi_label_classification", 6)
    expected = {
        f"f1_{kind}": sklearn_metrics.f1_score(actual, predicted, average=kind)
        for kind in ("micro", "macro", "weighted")
    }
    assert found == pytest.approx({**expected, "subset_accuracy": sklearn_metrics.accuracy_score(actual, predicted)})


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
    assert compute_metrics(np.ones(5), actual[:5], "regression", 1)["pearson"] == 0.0
