from __future__ import annotations

import numpy as np
import pytest
from cleanlab.filter import find_label_issues

from finetune.evaluation.label_errors import find_label_errors


def predicted(labels: np.ndarray, num_labels: int, seed: int) -> np.ndarray:
    """Return probabilities of a good model, (N, C)."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), num_labels)) + 6 * np.eye(num_labels)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_labels", [2, 5])
def test_swapped_labels_are_found_first(num_labels: int) -> None:
    random = np.random.default_rng(0)
    true = random.integers(num_labels, size=600)
    probabilities = predicted(true, num_labels, 1)
    swapped = random.choice(600, 30, replace=False)
    labels = true.copy()
    labels[swapped] = (labels[swapped] + 1) % num_labels
    errors = find_label_errors(labels, probabilities)
    assert 25 <= len(errors.rows) <= 60
    assert len(set(errors.rows[:25]) & set(swapped)) >= 24
    assert (np.diff(errors.label_probabilities) >= 0).all()
    assert (errors.label_probabilities == probabilities[errors.rows, labels[errors.rows]]).all()
    assert (errors.suggested == probabilities[errors.rows].argmax(axis=1)).all()
    assert (errors.suggested_probabilities == probabilities[errors.rows].max(axis=1)).all()
    assert (errors.suggested != labels[errors.rows]).all()
    flagged = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
    assert set(errors.rows) <= set(np.flatnonzero(flagged))


def test_right_labels_are_not_errors() -> None:
    labels = np.arange(300) % 3
    probabilities = np.full((300, 3), 0.02)
    probabilities[np.arange(300), labels] = 0.96
    assert len(find_label_errors(labels, probabilities).rows) == 0


@pytest.mark.parametrize("labels", [[1] * 8, [0, 2] * 4])
def test_a_split_may_lack_classes(labels: list[int]) -> None:
    probabilities = np.full((8, 4), 0.02)
    probabilities[:, 2] = 0.94
    errors = find_label_errors(np.array(labels), probabilities)
    assert set(errors.rows) <= set(range(0, 8, 2))  # rows of label 2 are predicted correctly


def test_label_sets_are_problems_of_their_own() -> None:
    random = np.random.default_rng(0)
    true = np.stack([random.integers(2, size=400), random.integers(2, size=400), np.zeros(400, int)], axis=1)
    probabilities = np.abs(true - random.uniform(0.01, 0.3, (400, 3)))
    wrong = [5, 17, 200]
    probabilities[wrong] = np.abs(true[wrong] - 0.01)
    labels = true.copy()
    labels[5, 0] ^= 1
    labels[17, 1] ^= 1
    labels[200, :2] ^= 1
    errors = find_label_errors(labels, probabilities)
    assert sorted(errors.rows) == wrong
    assert (errors.suggested == true[errors.rows]).all()
    assert (np.diff(errors.label_probabilities) >= 0).all()
    row = list(errors.rows).index(5)
    own = probabilities[5, 0] if labels[5, 0] else 1 - probabilities[5, 0]
    assert errors.label_probabilities[row] == pytest.approx(own)
    assert errors.suggested_probabilities[row] == pytest.approx(1 - own)
