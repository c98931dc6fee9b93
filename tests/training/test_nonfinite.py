from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from finetune.errors import TrainingError
from finetune.training.nonfinite import FiniteCheck, StepInfo

NAN, ONE = torch.tensor(float("nan")), torch.tensor(1.0)


def info(step: int, rows: int = 2) -> StepInfo:
    return StepInfo(step, 0.01, np.arange(1, rows + 1), "a.csv")


def test_a_step_is_told_at_once_or_one_step_later() -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 3 \(learning rate 0.01\), rows 1, 2 of a.csv; the"
    ):
        FiniteCheck(late=False).record(NAN, ONE, info(3))
    late = FiniteCheck(late=True)
    late.record(NAN, ONE, info(3))
    with pytest.raises(TrainingError, match="at step 3 "):
        late.record(ONE, ONE, info(4))
    late.record(ONE, ONE * float("inf"), info(5))
    with pytest.raises(TrainingError, match=r"the loss is 1, but its gradient is not finite at step 5"):
        late.check()
    late.check()  # told once


def test_many_rows_are_counted() -> None:
    with pytest.raises(TrainingError, match=r"63, 64 and 36 more of a.csv"):
        FiniteCheck(late=False).record(NAN, ONE, info(1, rows=100))


class Pretended(TorchFunctionMode):
    """Every tensor says that it is on another device; copies to the host are noted."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.waited: list[bool] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.device
        if func is torch.Tensor.to:
            self.waited.append(not kwargs["non_blocking"])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True), ("xpu", True)])
def test_values_are_read_once_they_have_arrived(monkeypatch: pytest.MonkeyPatch, device: str, waits: bool) -> None:
    steps: list[str] = []

    class Event:
        def record(self) -> None:
            steps.append("record")

        def synchronize(self) -> None:
            steps.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    check = FiniteCheck(late=device == "cuda")
    with Pretended(device) as pretended:
        check.record(ONE, ONE, info(1))
        check.check()
    assert pretended.waited == [waits]
    assert steps == ([] if waits else ["record", "synchronize"])
