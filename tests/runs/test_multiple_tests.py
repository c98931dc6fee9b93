from __future__ import annotations

import pytest

from finetune.runs.multiple_tests import holm


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04, times 4, 3, 2, 1: .04, .06, .06, .04. Each is at least as large as the previous one.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
