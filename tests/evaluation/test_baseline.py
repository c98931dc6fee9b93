"""Warnings about a model that is no better than a constant prediction: finetune/evaluation/baseline.py."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation.baseline import compare_with_constant, constant_score
from finetune.evaluation.intervals import classification_intervals
from finetune.evaluation.regression_intervals import regression_intervals

NAMES = ["a", "b", "c"]
SIXTY = [0] * 30 + [1] * 20 + [2] * 10


def compare(
    predictions: Any, references: Any, names: list[str], metric: str = "accuracy"
) -> tuple[bool | None, list[str]]:
    predicted, actual = np.array(predictions), np.array(references)
    if names:
        metrics, _ = classification_intervals(predicted, actual, names)
    else:
        metrics = regression_intervals(predicted, actual)
    comparison = compare_with_constant(predicted, actual, names, metrics, metric)
    return comparison.above_constant, comparison.warnings


RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(size=40)
SETS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]] * 10)


@pytest.mark.parametrize(
    ("predictions", "references", "names", "expected"),
    [
        (SIXTY, SIXTY, NAMES, []),
        (
            [0] * 60,
            SIXTY,
            NAMES,
            [
                r"accuracy 0\.500 \[0\.\d+, 0\.\d+\] is not clearly above 0\.500, the score of predicting 'a' for "
                r"every row: the model may have learned nothing\. Try more epochs .*learning_rate, or",
                r"never predicted: 'b' \(20 rows\), 'c' \(10 rows\), so their recall is 0\. Try more training rows",
            ],
        ),
        ([0] * 30 + [1] * 30, SIXTY, NAMES, [r"^never predicted: 'c' \(10 rows\), so"]),
        (
            [0] * 26 + [1] * 4 + [0] * 30,
            [0] * 30 + [1] * 30,
            NAMES[:2],
            [r"accuracy 0\.433 .* not clearly above 0\.500"],
        ),
        ([0, 1, 1, 0], [0, 1, 1, 0], NAMES[:2], []),  # four rows have no interval
        ([0, 1, 1, 0], [0, 1, 0, 1], NAMES[:2], [r"accuracy 0\.500 is not clearly above 0\.500"]),
        ([0] * 12, [0] * 12, NAMES, [r"^all 12 rows have the label 'a', so the scores do not show whether"]),
        (VALUES + 0.1, VALUES, [], []),
        (
            np.full(40, VALUES.mean()),
            VALUES,
            [],
            [r"mean_squared_error 0\.\d+ \[.*\] is not clearly below 0\.\d+, the score of predicting the mean"],
        ),
        ([1.0, 2.0], [1.0, 2.0], [], []),
        (VALUES, np.ones(40), [], [r"^all 40 rows have the value 1, so"]),
        (SETS, SETS, NAMES, []),
        (
            SETS * 0,
            SETS,
            NAMES,
            [r"^no label was predicted for any row, because no probability exceeds 0\.5: .*Try more epochs"],
        ),
        (
            np.tile([1, 1, 0], (40, 1)),
            SETS,
            NAMES,
            [
                r"f1_micro 0\.615 .* is not clearly above 0\.615, the score of predicting 'a', 'b' for every row",
                r"^never predicted: 'c' \(10 rows\)",
            ],
        ),
    ],
)
def test_a_model_no_better_than_a_constant_prediction_is_reported(
    predictions: Any, references: Any, names: list[str], expected: list[str]
) -> None:
    above_constant, reported = compare(predictions, references, names)
    one_label = any("so the scores do not show" in warning for warning in reported)
    below = any("not clearly" in warning or "no label was" in warning for warning in reported)
    assert above_constant is (None if one_label else not below)
    assert len(reported) == len(expected), reported
    for warning, pattern in zip(reported, expected, strict=True):
        assert re.search(pattern, warning), warning


def test_only_the_first_names_are_listed() -> None:
    names = [f"label {number}" for number in range(8)]
    _, reported = compare([0] * 40, [0] * 5 + [n for n in range(1, 8) for _ in range(5)], names)
    assert "'label 5' (5 rows) and 2 more, so their recall is 0" in reported[1]


def test_the_multi_label_baseline_is_the_best_label_set() -> None:
    # Multi-label micro F1 is compared with the best constant prediction, determined here by trying all label sets.
    best = max(
        f1_score(SETS, np.tile(chosen, (40, 1)), average="micro", zero_division=0.0)
        for chosen in itertools.product([0, 1], repeat=3)
    )
    _, (warning, _) = compare(np.tile([1, 1, 0], (40, 1)), SETS, NAMES)
    assert f"not clearly above {best:.3f}, the score of" in warning


def test_a_rare_class_is_judged_by_the_metric_that_selected_the_model() -> None:
    # 95 rows of one class, 5 of the other; all 5 are recognized, and 10 others are taken for them.
    references, predictions = [0] * 95 + [1] * 5, [0] * 85 + [1] * 15
    above_constant, (warning,) = compare(predictions, references, NAMES[:2])
    assert not above_constant
    assert "accuracy 0.900" in warning
    assert compare(predictions, references, NAMES[:2], "f1_macro") == (True, [])
    above_constant, (warning, _) = compare([0] * 100, references, NAMES[:2], "f1_macro")
    assert not above_constant
    assert warning.startswith("f1_macro 0.487 is not clearly above 0.487")
    assert ", the score of predicting 'a' for every row" in warning
    assert compare(predictions, references, NAMES[:2], "loss") == compare(predictions, references, NAMES[:2])


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", 0.5), ("f1_macro", 2 / 9), ("matthews_correlation", 0)])
def test_the_score_of_the_most_frequent_class(metric: str, expected: float) -> None:
    assert constant_score(np.array(SIXTY), 3, metric) == pytest.approx(expected)
