from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from finetune.evaluation.paired_tests import mcnemar_p_value, row_f1, wilcoxon_p_value


def test_equal_classifiers_have_a_p_value_of_one() -> None:
    assert mcnemar_p_value(0, 0) == 1
    assert wilcoxon_p_value(np.zeros(5)) == 1


def test_the_p_values_are_those_of_the_tests() -> None:
    assert mcnemar_p_value(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)  # by hand: 0 or 1 of 6 coins
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.7])
    assert wilcoxon_p_value(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon_p_value(differences) == pytest.approx(2 * 2 / 2**5)  # by hand: a rank sum of 0 or 1


def test_the_f1_of_a_row_is_that_of_its_labels() -> None:
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 2, (2, 40, 3))
    assert ((predictions + references).sum(-1) == 0).any()
    expected_rows = [f1_score(a, b, zero_division=1.0) for a, b in zip(references, predictions, strict=True)]
    assert row_f1(predictions, references) == pytest.approx(expected_rows)
