from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.errors import TrainingError
from finetune.finiteness import FiniteCheck, StepFacts

NAN, ONE = torch.tensor(float("nan")), torch.tensor(1.0)


def facts(step: int, rows: int = 2) -> StepFacts:
    return StepFacts(step, 0.01, np.arange(1, rows + 1), "a.csv")


def test_a_step_is_told_at_once_or_one_step_later() -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 3 \(learning rate 0.01\), rows 1, 2 of a.csv; the"
    ):
        FiniteCheck(late=False).note(NAN, ONE, facts(3))
    late = FiniteCheck(late=True)
    late.note(NAN, ONE, facts(3))
    with pytest.raises(TrainingError, match="at step 3 "):
        late.note(ONE, ONE, facts(4))
    late.note(ONE, ONE * float("inf"), facts(5))
    with pytest.raises(TrainingError, match=r"the loss is 1, but its gradient is not finite at step 5"):
        late.settle()
    late.settle()  # told once


def test_many_rows_are_counted() -> None:
    with pytest.raises(TrainingError, match=r"63, 64 and 36 more of a.csv"):
        FiniteCheck(late=False).note(NAN, ONE, facts(1, rows=100))
