from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from finetune.errors import TrainingError
from finetune.training.nonfinite import MAX_SKIPPED, FiniteCheck, SkippedSteps, StepInfo

NAN, ONE = torch.tensor(float("nan")), torch.tensor(1.0)


def info(step: int, rows: int = 2) -> StepInfo:
    return StepInfo(step, 0.01, np.arange(1, rows + 1), "a.csv")


def test_the_error_is_raised_immediately_or_one_step_later() -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 3 \(learning rate 0.01\), rows 1, 2 of a.csv; the"
    ):
        FiniteCheck(delayed=False).record(NAN, ONE, info(3))
    check = FiniteCheck(delayed=True)
    check.record(NAN, ONE, info(3))
    with pytest.raises(TrainingError, match="at step 3 "):
        check.record(ONE, ONE, info(4))
    check.record(ONE, ONE * float("inf"), info(5))
    with pytest.raises(TrainingError, match=r"the loss is 1, but its gradient is not finite at step 5"):
        check.check()
    check.check()  # raised only once


def test_a_long_list_of_rows_is_shortened() -> None:
    with pytest.raises(TrainingError, match=r"63, 64 and 36 more of a.csv"):
        FiniteCheck(delayed=False).record(NAN, ONE, info(1, rows=100))


class OnDevice(TorchFunctionMode):
    """Makes every tensor report another device, and records whether copies to the CPU are blocking."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.blocking: list[bool] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.device
        if func is torch.Tensor.to:
            self.blocking.append(not kwargs["non_blocking"])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "blocks"), [("cuda", False), ("mps", True), ("xpu", True)])
def test_values_are_read_after_the_copy_is_complete(monkeypatch: pytest.MonkeyPatch, device: str, blocks: bool) -> None:
    calls: list[str] = []

    class Event:
        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    check = FiniteCheck(delayed=device == "cuda")
    with OnDevice(device) as mode:
        check.record(ONE, ONE, info(1))
        check.check()
    assert mode.blocking == [blocks]
    assert calls == ([] if blocks else ["record", "synchronize"])


def test_fp16_may_skip_some_steps() -> None:
    skipped = SkippedSteps()
    for step in range(1, 3 * MAX_SKIPPED + 2):
        skipped.record(step % MAX_SKIPPED != 0, info(step))
    skipped.finish()


def test_fp16_may_skip_the_last_step_of_a_resumed_run_and_the_step_of_a_dry_run() -> None:
    resumed, dry_run = SkippedSteps(), SkippedSteps()
    for skipped, step in ((resumed, 40), (dry_run, 1)):
        skipped.record(True, info(step))
        skipped.finish()
    dry_run.record(True, info(2))
    with pytest.raises(
        TrainingError, match="fp16: the gradient was not finite in 2 consecutive steps, the last at step 2"
    ):
        dry_run.finish()
