"""Warnings about a model that is no better than a constant prediction: finetune/evaluation/baseline.py."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation.baseline import baseline_warnings
from finetune.evaluation.bootstrap import classification_intervals, regression_intervals

NAMES = ["a", "b", "c"]
SIXTY = [0] * 30 + [1] * 20 + [2] * 10


def warnings(predictions: Any, references: Any, names: list[str]) -> list[str]:
    predicted, actual = np.array(predictions), np.array(references)
    if not names:
        return baseline_warnings(predicted, actual, [], regression_intervals(predicted, actual, samples=200, seed=0))
    metrics, _ = classification_intervals(predicted, actual, names, samples=200, seed=0)
    return baseline_warnings(predicted, actual, names, metrics)


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
    reported = warnings(predictions, references, names)
    assert len(reported) == len(expected), reported
    for warning, pattern in zip(reported, expected, strict=True):
        assert re.search(pattern, warning), warning


def test_only_the_first_names_are_listed() -> None:
    names = [f"label {number}" for number in range(8)]
    reported = warnings([0] * 40, [0] * 5 + [n for n in range(1, 8) for _ in range(5)], names)
    assert "'label 5' (5 rows) and 2 more, so their recall is 0" in reported[1]


def test_the_multi_label_baseline_is_the_best_label_set() -> None:
    # Multi-label micro F1 is compared with the best constant prediction, determined here by trying all label sets.
    best = max(
        f1_score(SETS, np.tile(chosen, (40, 1)), average="micro", zero_division=0.0)
        for chosen in itertools.product([0, 1], repeat=3)
    )
    (warning, _) = warnings(np.tile([1, 1, 0], (40, 1)), SETS, NAMES)
    assert f"not clearly above {best:.3f}, the score of" in warning
