"""How reliable probabilities are on a split, and what prediction sets do on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.evaluation.confidence import confidence_scores
from finetune.evaluation.prediction import Predictions
from finetune.models.outputs import OutputRules
from finetune.runs.results import ConfidenceScores

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ("a", "b", "c", "d")


def predicted(rows: int, seed: int, calibration_rows: int, problem_type: str = SINGLE) -> Predictions:
    """Return predictions of random rows, with the conformal scores of others."""
    rng = np.random.default_rng(seed)
    count = rows + calibration_rows
    if problem_type == REGRESSION:
        logits, labels = rng.normal(size=(count, 1)), rng.normal(size=count)
    else:
        logits, labels = rng.normal(size=(count, 4)) * 2, rng.integers(4, size=count)
        logits += 3 * np.eye(4)[labels]
    names = NAMES[: logits.shape[1]]
    rules = OutputRules(names, problem_type)
    if problem_type == MULTI:
        labels = (rng.random((count, 4)) < rules.probabilities(logits)).astype(int)
    if calibration_rows and problem_type != MULTI:
        rules = rules.with_scores_of(logits[rows:], labels[rows:], seed=0)
    return Predictions(torch.tensor(logits[:rows]), torch.ones(rows), labels[:rows], rules)


def scored(predictions: Predictions, *, fitted: bool = False) -> ConfidenceScores:
    return confidence_scores(predictions, fitted=fitted, samples=100, seed=0)


def test_sets_on_other_rows_use_the_saved_scores() -> None:
    predictions = predicted(400, 0, 300)
    result = scored(predictions)
    assert [entry.coverage for entry in result.sets] == [0.8, 0.9, 0.95]
    probabilities = predictions.rules.probabilities(predictions.logits.numpy())
    for entry in result.sets:
        predicted_rows = predictions.rules.predictions(
            predictions.logits.numpy(), limits=predictions.rules.limits(entry.coverage)
        )
        names = [row.labels or () for row in predicted_rows]
        right = [NAMES[label] in labels for label, labels in zip(predictions.labels, names, strict=True)]
        single = [answer for answer, labels in zip(right, names, strict=True) if len(labels) == 1]
        assert entry.covered.value == pytest.approx(np.mean(right))
        assert entry.size == pytest.approx(np.mean([len(labels) for labels in names]))
        assert entry.answered == pytest.approx(len(single) / 400)
        assert entry.answered_correctly is not None
        assert entry.answered_correctly.value == pytest.approx(np.mean(single))
        assert entry.empty == pytest.approx(np.mean([not labels for labels in names]))
    assert result.note == ""
    assert result.calibration_error is not None
    assert result.brier is not None
    assert result.brier.value == pytest.approx(((probabilities - np.eye(4)[predictions.labels]) ** 2).sum(1).mean())
    assert result.risk_coverage_area is not None


def test_sets_on_the_rows_that_fitted_them_are_cross_fitted() -> None:
    """With 40 rows and a coverage of 0.95, the limit of all rows is the 39th score: it covers 39 or 40 of them."""
    predictions = predicted(40, 1, 0)
    rules = predictions.rules.with_scores_of(predictions.logits.numpy(), predictions.labels, seed=0)
    fitted = Predictions(predictions.logits, predictions.losses, predictions.labels, rules)
    result, circular = scored(fitted, fitted=True), scored(fitted)
    assert "each tenth of them was scored with limits from the other" in result.note.lower()
    covered = [entry.covered.value for entry in result.sets]
    assert [entry.coverage for entry in result.sets] == [0.8, 0.9, 0.95]
    assert covered != [entry.covered.value for entry in circular.sets]


def test_a_coverage_that_few_rows_cannot_promise_is_left_out() -> None:
    assert [entry.coverage for entry in scored(predicted(50, 0, 12)).sets] == [0.8, 0.9]
    assert scored(predicted(50, 0, 3)).sets == []
    assert scored(predicted(50, 0, 0)).sets == []  # a run of an earlier version


def test_several_labels_per_row_have_no_sets_and_no_curve() -> None:
    result = scored(predicted(120, 0, 0, MULTI))
    assert (result.sets, result.risk_coverage_area) == ([], None)
    assert result.calibration_error is not None


def test_a_regression_has_intervals_only() -> None:
    result = scored(predicted(3000, 0, 1000, REGRESSION))
    assert (result.calibration_error, result.brier, result.risk_coverage_area) == (None, None, None)
    for entry in result.sets:
        assert entry.covered.value == pytest.approx(entry.coverage, abs=0.04)
        assert (entry.answered, entry.answered_correctly, entry.empty) == (None, None, None)
    widths = [entry.size for entry in result.sets]
    assert widths == sorted(widths)
    # The difference of two standard normal values is within 1.645 sqrt(2) with probability 0.9.
    assert widths[1] == pytest.approx(2 * 1.645 * np.sqrt(2), rel=0.1)
