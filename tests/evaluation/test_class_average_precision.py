"""The average precision of each label: finetune/evaluation/class_average_precision.py."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from finetune.evaluation.class_average_precision import MIN_LABEL_ROWS, class_average_precisions
from finetune.evaluation.scored_rows import ScoredRows


def scored(rows: int, *, multi_label: bool) -> ScoredRows:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 0.05], rows)
    labels = np.array([rng.choice(3, p=row) for row in probabilities])
    if multi_label:
        labels = (rng.random(probabilities.shape) < probabilities).astype(int)
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    return ScoredRows(labels, labels, probabilities, ("a", "b", "rare"), kind)


@pytest.mark.parametrize("multi_label", [False, True])
def test_values_are_those_of_sklearn_with_intervals_for_labels_with_enough_rows(multi_label: bool) -> None:
    rows = scored(300, multi_label=multi_label)
    support = rows.indicators.sum(0)
    assert 0 < support[2] < MIN_LABEL_ROWS < support[0]
    cells = class_average_precisions(rows, samples=200, seed=0)
    expected = [average_precision_score(rows.indicators[:, label], rows.scores[:, label]) for label in range(3)]
    assert [cell.value for cell in cells] == pytest.approx(expected)
    for cell in cells[:2]:
        assert cell.low is not None
        assert cell.high is not None
        assert cell.value is not None
        assert cell.low < cell.value < cell.high
    assert (cells[2].low, cells[2].note) == (None, "no interval: fewer than 20 rows have the label")


def test_a_label_without_rows_is_undefined_and_a_few_rows_have_no_intervals() -> None:
    rows = scored(30, multi_label=True)
    rows.labels[:, 2] = 0
    cells = class_average_precisions(rows, samples=100, seed=0)
    assert (cells[2].value, cells[2].interval()) == (None, "")
    assert all(cell.low is None for cell in class_average_precisions(rows.select(np.arange(5)), samples=100, seed=0))
