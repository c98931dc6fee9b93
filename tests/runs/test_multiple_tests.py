from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune.runs.multiple_tests import benjamini_hochberg, holm


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04, times 4, 3, 2, 1: .04, .06, .06, .04. Each is at least as large as the previous one.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_q_values_are_those_of_scipy() -> None:
    p_values = np.random.default_rng(0).random(40) ** 3
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values))
    assert benjamini_hochberg([]).tolist() == []
