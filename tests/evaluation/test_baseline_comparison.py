"""A classifier beside its baselines: finetune/evaluation/baseline_comparison.py."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.baseline_comparison import ComparisonSettings, compare_with_baselines, compared_metric
from finetune.evaluation.baseline_models import Baseline
from finetune.runs.baselines import SplitComparison
from tests.support.predictions import predictions_of

LABELS = np.arange(200) % 2


def settings(metric: str, *metrics: str, classes: int = 2) -> ComparisonSettings:
    return ComparisonSettings(metrics or (metric,), metric, classes, 500, 0)


def with_errors(count: int, start: int = 0) -> np.ndarray:
    """Return the labels, of which `count` are wrong."""
    predicted = LABELS.copy()
    predicted[start : start + count] = 1 - predicted[start : start + count]
    return predicted


def compare(classifier: np.ndarray, *baselines: np.ndarray, metric: str = "accuracy") -> SplitComparison:
    predictions = predictions_of(np.eye(2)[classifier].tolist(), LABELS)
    fitted = {f"b{n}": Baseline(f"baseline {n}", 10, {"test": values}) for n, values in enumerate(baselines)}
    return compare_with_baselines(predictions, "test", fitted, settings(metric))


@pytest.mark.parametrize(
    ("classifier", "baselines", "expected"),
    [
        (with_errors(10), [with_errors(60), np.zeros(200, int)], ""),
        (
            with_errors(60),
            [with_errors(70), with_errors(10, 100), np.zeros(200, int)],
            r"^accuracy 0\.700 is clearly below 0\.950, the score of a baseline \(baseline 1\) \(difference -0\.250, "
            r"95 % interval \[-0\.3\d+, -0\.1\d+\]\)\. Use the baseline, or train for more epochs",
        ),
        (
            with_errors(20),
            [with_errors(100, 50), with_errors(24, 100)],
            r"^accuracy 0\.900 is not clearly above 0\.880, the score of a baseline \(baseline 1\) \(difference "
            r"\+0\.020, .*\)\. Train for more epochs .*or with another encoder, or use the baseline$",
        ),
        (with_errors(5), [with_errors(5)], r"^accuracy 0\.975 is not clearly above 0\.975, the score of a baseline \("),
        (with_errors(0), [with_errors(0)], ""),  # a perfect score cannot be beaten
    ],
)
def test_a_baseline_that_is_not_clearly_beaten_is_named(
    classifier: np.ndarray, baselines: list[np.ndarray], expected: str
) -> None:
    result = compare(classifier, *baselines)
    assert bool(result.warning) == bool(expected)
    assert re.search(expected, result.warning), result.warning
    for scores, predicted in zip(result.baselines.values(), baselines, strict=True):
        accuracy = (predicted == LABELS).mean()
        assert scores.metrics == {"accuracy": pytest.approx(accuracy)}
        difference = scores.differences["accuracy"]
        assert difference.value == pytest.approx((classifier == LABELS).mean() - accuracy)


def test_the_interval_is_of_the_compared_metric_and_of_accuracy() -> None:
    result = compare(with_errors(20), np.zeros(200, int), metric="f1_macro")
    assert result.baselines["b0"].differences.keys() == {"f1_macro", "accuracy"}
    assert result.classifier.keys() == {"f1_macro"}


def test_errors_are_better_if_they_are_lower() -> None:
    labels = np.linspace(0, 1, 100)
    noise = np.tile([1.0, -1.0], 50)

    def warning(classifier: Any, baseline: Any) -> str:
        predictions = predictions_of(classifier[:, None].tolist(), labels, "regression")
        fitted = {"majority": Baseline("mean", 5, {"test": baseline})}
        chosen = settings("mean_squared_error", "mean_squared_error", "pearson", classes=1)
        return compare_with_baselines(predictions, "test", fitted, chosen).warning

    constant = np.full(100, labels.mean())
    assert warning(labels + 0.01 * noise, constant) == ""
    assert warning(labels + 0.9 * noise, constant).startswith(
        "mean_squared_error 0.810 is clearly above 0.085, the score of a baseline (mean)"
    )
    assert "is not clearly below 0.085" in warning(constant, constant)


def test_an_undefined_metric_cannot_be_compared() -> None:
    labels = np.linspace(0, 1, 20)
    predictions = predictions_of(labels[:, None].tolist(), labels, "regression")
    fitted = {"majority": Baseline("mean", 5, {"test": np.full(20, 0.5)})}
    result = compare_with_baselines(predictions, "test", fitted, settings("pearson", classes=1))
    assert result.baselines["majority"].metrics == {"pearson": None}
    assert result.warning == ""


def test_few_rows_are_compared_by_their_values() -> None:
    predictions = predictions_of([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 1])
    fitted = {"majority": Baseline("constant", 5, {"test": np.array([1, 1, 1])})}
    result = compare_with_baselines(predictions, "test", fitted, settings("accuracy"))
    assert result.warning.startswith(
        "accuracy 0.667 is not clearly above 0.667, the score of a baseline (constant). Train"
    )


def test_label_sets_are_compared() -> None:
    sets = np.array([[1, 0], [0, 1]] * 20)
    predictions = predictions_of((sets * 2.0 - 1).tolist(), sets, "multi_label_classification")
    fitted = {"majority": Baseline("constant", 5, {"test": np.ones_like(sets)})}
    result = compare_with_baselines(predictions, "test", fitted, settings("f1_micro"))
    assert result.warning == ""
    assert result.baselines["majority"].metrics["f1_micro"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("best", "metrics", "expected"),
    [("f1_macro", ["accuracy", "f1_macro"], "f1_macro"), ("loss", ["accuracy", "f1_macro"], "accuracy")],
)
def test_the_metric_that_selected_the_model_is_compared(best: str, metrics: list[str], expected: str) -> None:
    assert compared_metric(best, metrics, "single_label_classification") == expected
