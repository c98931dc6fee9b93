from __future__ import annotations

import numpy as np
import pyarrow as pa

from finetune.report.row_outcomes import label_sets, likely_label_errors, wrong_rows


def test_wrong_rows_of_each_problem_type() -> None:
    single = pa.table({"label": ["a", "b"], "predicted": ["a", "a"]})
    assert wrong_rows(single).tolist() == [False, True]
    multi = pa.table({"label": [["a", "b"], [], ["a"]], "predicted": [["b", "a"], ["b"], ["a", "b"]]})
    assert wrong_rows(multi).tolist() == [False, True, True]
    none = pa.table(
        {"label": pa.array([[]], pa.list_(pa.string())), "predicted": pa.array([[]], pa.list_(pa.string()))}
    )
    assert wrong_rows(none).tolist() == [False]
    assert wrong_rows(pa.table({"label": [0.5], "predicted": [0.25]})).tolist() == [False]


def test_label_sets_are_a_matrix() -> None:
    column = pa.chunked_array([[["b"], []], [["a", "c"]]])
    assert label_sets(column, ["a", "b", "c"]).tolist() == [[False, True, False], [False] * 3, [True, False, True]]


def test_swapped_labels_are_found_first() -> None:
    random = np.random.default_rng(0)
    true = random.integers(3, size=600)
    logits = random.normal(size=(600, 3)) + 6 * np.eye(3)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    swapped = random.choice(600, 30, replace=False)
    labels = true.copy()
    labels[swapped] = (labels[swapped] + 1) % 3
    errors = likely_label_errors(labels, probabilities, np.zeros(600, int))
    assert len(errors) >= 25
    assert len(set(errors[:25]) & set(swapped)) >= 24
    margins = probabilities[errors, labels[errors]] - probabilities[errors].max(axis=1)
    assert (np.diff(margins) >= -1e-6).all()


def test_the_rule_by_hand() -> None:
    # Mean probability of label 0 in its rows: (0.9 + 0.7 + 0.2) / 3 = 0.6; of label 1: (0.9 + 0.5 + 0.45) / 3 = 0.617.
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert likely_label_errors(labels, probabilities, np.zeros(6, int)).tolist() == [2]  # 0.55 is below 0.6
    # In a split of its own, row 5 is compared with the rows of label 0 there: there are none.
    assert likely_label_errors(labels, probabilities, np.array([0, 0, 0, 0, 0, 1])).tolist() == [2]


def test_label_sets_are_problems_of_their_own() -> None:
    probabilities = np.array([[0.9, 0.9], [0.1, 0.9], [0.8, 0.1], [0.2, 0.1], [0.95, 0.9]])
    labels = np.array([[1, 1], [0, 1], [1, 0], [0, 0], [0, 1]], bool)
    assert likely_label_errors(labels, probabilities, np.zeros(5, int)).tolist() == [4]  # label 0 is missing
