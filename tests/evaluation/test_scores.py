"""The scores of a split: finetune/evaluation/scores.py."""

from __future__ import annotations

import pytest

from finetune.evaluation.scores import score
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
