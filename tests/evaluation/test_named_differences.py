"""Differences of runs and of series in metrics of scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from finetune.evaluation.named_differences import named_covariance, named_difference
from finetune.evaluation.run_differences import DifferenceSettings, difference_on_rows
from finetune.evaluation.scored_rows import ScoredRows
from tests.support.metric_rows import scored_rows

ROWS = scored_rows("single_label_classification", rows=200, classes=2)


def _run(noise: float, seed: int) -> ScoredRows:
    """Return predictions for the same rows: the probability of the second label, with noise."""
    second = 1 / (1 + np.exp(-2 * ROWS.labels + 1 + noise * np.random.default_rng(seed).normal(size=len(ROWS))))
    return replace(ROWS, probabilities=np.stack([1 - second, second], axis=1), predicted=(second > 0.5).astype(int))


WORSE, BETTER = [_run(3.0, seed) for seed in range(3)], [_run(0.5, seed) for seed in range(3, 6)]


def _auc(rows: ScoredRows) -> float:
    return float(roc_auc_score(rows.labels, rows.scores[:, 1]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_difference_of_areas_has_an_interval_and_a_p_value(seeds: int) -> None:
    first, second = WORSE[:seeds], BETTER[:seeds]
    result = named_difference(first, second, "roc_auc", samples=200, seed=0)
    means = [np.mean([_auc(run) for run in runs]) for runs in (first, second)]
    difference = result.metric.difference
    assert (result.metric.first, result.metric.second) == pytest.approx(means)
    assert difference.value == pytest.approx(means[1] - means[0])
    assert difference.low is not None
    assert difference.high is not None
    assert 0 < difference.low < difference.value < difference.high  # type: ignore[operator]
    assert result.p_value is not None
    assert result.p_value < 0.05


def test_undefined_metrics_say_why() -> None:
    one_class = ROWS.select(np.flatnonzero(ROWS.labels == 0))
    result = named_difference([one_class], [one_class], "roc_auc", samples=200, seed=0)
    assert result.metric.difference.value is result.p_value is None
    assert result.metric.difference.note == "undefined: Only one class is present in y_true"
    few = [ROWS.select(np.arange(5))] * 2
    assert np.isnan(named_covariance(few, "roc_auc", samples=200, seed=0)[0]).all()


def test_metrics_of_sklearn_stand_between_those_of_the_toolkit() -> None:
    settings = DifferenceSettings(("roc_auc", "accuracy", "log_loss"), "log_loss", ("no", "yes"), 50, 0)
    sides = [[run.predicted for run in runs] for runs in (WORSE, BETTER)]
    probabilities = [run.probabilities for run in (*WORSE, *BETTER)]
    result = difference_on_rows(sides[0], sides[1], ROWS.labels, settings, probabilities)
    assert list(result.metrics) == ["roc_auc", "accuracy", "log_loss"]
    assert result.metrics["log_loss"].difference.value is not None
    assert result.metrics["log_loss"].difference.value < 0
    assert result.test is not None
    assert result.test.subject == "log_loss"
    assert [row.label for row in result.classes] == ["no", "yes"]
    without = difference_on_rows(sides[0], sides[1], ROWS.labels, settings)
    assert without.metrics["roc_auc"].difference.note == "undefined: it needs probabilities, and there are none"
    assert without.metrics["accuracy"] == result.metrics["accuracy"]
