"""The scores of a split: finetune/evaluation/scores.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.evaluation.scores import score
from tests.support.metric_rows import write_cost_metric
from tests.support.predictions import predictions_of


def test_scores_of_known_predictions() -> None:
    predictions = predictions_of([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 1.0]] * 5, [0, 1, 1, 1] * 5)
    scores = score(predictions, ["no", "yes"], ["accuracy", "f1_macro"], samples=200, seed=0)
    assert scores.rows == 20
    assert scores.confusion == [[5, 0], [5, 10]]
    assert list(scores.metrics) == ["accuracy", "f1_macro"]
    assert scores.metrics["accuracy"].value == 0.75
    assert scores.per_class[1].recall.value == pytest.approx(2 / 3)
    assert (scores.loss, scores.interval_note) == (1.0, "")


def test_other_problem_types_are_scored() -> None:
    sets = predictions_of([[2.0, -1.0], [-1.0, 2.0]] * 10, [[1, 0], [1, 1]] * 10, "multi_label_classification")
    scores = score(sets, ["a", "b"], ["f1_micro", "subset_accuracy"], samples=100, seed=0)
    assert (scores.metrics["subset_accuracy"].value, scores.confusion) == (0.5, None)
    values = predictions_of([[1.0], [2.0]] * 10, [1.0, 3.0] * 10, "regression")
    scores = score(values, ["value"], ["mean_absolute_error"], samples=100, seed=0)
    assert (scores.metrics["mean_absolute_error"].value, scores.per_class) == (0.5, [])


def test_metrics_of_sklearn_and_loaded_ones_stand_beside_those_of_the_toolkit(tmp_path: Path) -> None:
    predictions = predictions_of([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 1.0]] * 5, [0, 1, 1, 1] * 5)
    path = str(write_cost_metric(tmp_path, '"cost": sum(costs), "cost_error": sum(costs) / len(costs)'))
    names = ["roc_auc", "accuracy", "top_3_accuracy", path]
    scores = score(predictions, ["no", "yes"], names, samples=100, seed=0, best_metric="roc_auc")
    assert list(scores.metrics) == ["roc_auc", "accuracy", "top_3_accuracy", "cost_error_cost", "cost_error"]
    assert scores.metrics["roc_auc"].value == pytest.approx(1 - 0.5 / 3)
    assert scores.metrics["roc_auc"].interval()
    assert (scores.metrics["cost_error"].value, scores.metrics["cost_error_cost"].value) == (5 / 4, 25)
    reason = "undefined: with 2 labels it is 1 for every model; choose a number below 2"
    assert scores.metric_notes() == [f"top 3 accuracy: {reason}"]
    assert list(predictions.metrics(names)) == ["loss", *scores.metrics]
    assert predictions.metrics(names)["top_3_accuracy"] is None


def test_an_undefined_correlation_says_why() -> None:
    values = predictions_of([[1.0], [2.0]] * 10, [3.0] * 20, "regression")
    scores = score(values, ["value"], ["pearson", "r2"], samples=100, seed=0)
    assert [cell.value for cell in scores.metrics.values()] == [None, None]
    assert scores.metric_notes() == [
        "pearson: undefined: all predictions or all labels of the rows are equal",
        "r2: undefined: all labels of the rows are equal",
    ]
