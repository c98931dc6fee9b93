from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads.explain_choice import choose_rows, rows_to_explain
from tests.heads.test_analysis import case, section_with

# Row: log-odds of label 1. Labels are 0 for the first ten rows and 1 for the others.
LOG_ODDS = [-3, -2, 5, -4, 0.1, -3, 1, -3, -3, -3, 4, 4, -6, 4, 4, -0.2, 4, 4, 4, 4]
LABELS = np.array([0] * 10 + [1] * 10)


def test_a_third_are_confident_errors_a_third_uncertain_and_the_rest_of_each_label() -> None:
    logits = torch.tensor([[0.0, value] for value in LOG_ODDS])
    # Errors by loss: 12, 2, (6, 15, 4); uncertain: 4, 15; then the first rows of each label in turn: 0, 10.
    assert choose_rows(logits, LABELS, "single_label_classification", 6) == [0, 2, 4, 10, 12, 15]
    assert choose_rows(logits, LABELS, "single_label_classification", 0) == []
    assert choose_rows(logits, LABELS, "single_label_classification", 100) == list(range(20))
    right = np.array([int(value > 0) for value in LOG_ODDS])
    assert choose_rows(logits, right, "single_label_classification", 3) == [0, 2, 4]  # no errors; 0, 2: labels 0 and 1


def test_multi_label_and_regression_rows_are_chosen_by_the_same_rules() -> None:
    logits = torch.tensor([[3.0, -3.0], [-3.0, 3.0], [0.1, -3.0], [9.0, -9.0], [2.0, -2.0], [-2.0, 2.0]])
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [1, 0], [0, 1]])
    # The only error is row 3; row 2 is the least certain; the most probable labels of the others are 0, 1.
    assert choose_rows(logits, labels, "multi_label_classification", 4) == [0, 1, 2, 3]
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    predictions = torch.tensor([[0.0], [1.0], [2.0], [9.0], [4.0], [5.0]])
    assert choose_rows(predictions, values, "regression", 3) == [0, 2, 3]  # the largest error, then evenly: 0, 2, 5


@pytest.mark.parametrize(
    ("splits", "changes", "expected"),
    [
        (("train", "validation"), {"curve_samples": 6}, ("validation", 6)),
        (("train", "validation"), {"max_samples": 5}, ("validation", 5)),
        (("train", "validation", "test"), {"curve_split": "test"}, ("test", 20)),
        (("train", "validation"), {"curve_split": "train", "split": "validation"}, ("validation", 20)),
        (("train", "validation"), {"curve_split": "validation", "split": "validation"}, ("validation", 10)),
        (("train", "test"), {"curve_split": None}, ("test", 20)),
        (("train",), {"curve_split": None}, None),
    ],
)
def test_held_out_rows_are_explained(
    tiny_bert: Path, splits: tuple[str, ...], changes: dict[str, object], expected: tuple[str, int] | None
) -> None:
    _, split = case(tiny_bert, "single_label_classification")
    section = section_with(leave_one_out=False, **changes)
    chosen = rows_to_explain(dict.fromkeys(splits, split), section, seed=0)
    assert (None if chosen is None else (chosen[0], len(set(chosen[1].tolist())))) == expected
