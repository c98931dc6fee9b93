"""Detection of steps whose loss or gradient is not finite. Such steps change no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from finetune.errors import TrainingError
from finetune.training.fsdp import full_tensor

_MAX_ROWS_SHOWN = 64
# The loss scale starts at 65,536 and is halved by each skipped step; a few are usual at the start of a run.
MAX_SKIPPED = 10


@dataclass(frozen=True)
class StepInfo:
    """The description of a step in error messages.

    Attributes:
        step: its number, from 1.
        learning_rate: its learning rate.
        rows: the numbers of its rows in the source, for all processes.
        source: the file or data set of the rows.
    """

    step: int
    learning_rate: float
    rows: np.ndarray
    source: str


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, (), in float32."""
    return full_tensor(get_total_norm([p.grad for p in parameters if p.grad is not None])).float()


class SkippedSteps:
    """Counts consecutive steps that the fp16 loss scaler skipped because their gradient was not finite."""

    def __init__(self) -> None:
        self._consecutive = 0
        self._last: StepInfo | None = None

    def record(self, skipped: bool, info: StepInfo) -> None:
        """Count a step.

        Raises:
            TrainingError: MAX_SKIPPED consecutive steps were skipped.
        """
        self._consecutive = self._consecutive + 1 if skipped else 0
        self._last = info
        if self._consecutive == MAX_SKIPPED:
            raise self._error()

    def finish(self) -> None:
        """Raise TrainingError if every step since the start of the run was skipped, so that nothing was trained.

        A run of a single step, such as a dry run, raises nothing: the initial loss scale may simply be too high.
        """
        if self._last is not None and self._consecutive == self._last.step > 1:
            raise self._error()

    def _error(self) -> TrainingError:
        assert self._last is not None
        return TrainingError(
            f"fp16: the gradient was not finite in {self._consecutive} consecutive steps, the last "
            f"{_describe(self._last)}; a skipped step changes no weights. Set training.mixed_precision: bf16 or no, "
            "lower training.learning_rate, or check these rows"
        )


class FiniteCheck:
    """Raises TrainingError for a step whose loss or gradient is not finite.

    With `delayed` it raises one step later, so that a GPU never waits for the copy to the CPU. The delay is harmless:
    the optimizer has skipped the step (`found_inf`). It is the only read from the device in a step, and no other is
    needed to count the steps that the fp16 loss scaler skipped, whose gradient may be infinite.
    """

    def __init__(self, *, delayed: bool) -> None:
        self._delayed = delayed
        self._skipped = SkippedSteps()
        self._pending: tuple[Tensor, torch.cuda.Event | None, StepInfo, bool] | None = None

    def record(self, loss: Tensor, norm: Tensor, info: StepInfo, *, scaled: bool = False) -> None:
        """Record loss and gradient norm of a step, both (), and check it, or the previous step if `delayed`.

        Args:
            scaled: whether the fp16 loss scaler skips the step if its gradient is not finite.
        """
        self.check()
        cuda = loss.device.type == "cuda"  # on other devices a non-blocking copy might be read too early
        values = torch.stack([loss.float(), norm.float()]).to("cpu", non_blocking=cuda)
        copied = None
        if cuda:
            copied = torch.cuda.Event()
            copied.record()
        self._pending = values, copied, info, scaled
        if not self._delayed:
            self.check()

    def check(self) -> None:
        """Check the last recorded step, unless it was checked already.

        Raises:
            TrainingError: the loss of that step is not finite, or its gradient; with the fp16 loss scaler, the gradient
                of MAX_SKIPPED consecutive steps.
        """
        if self._pending is None:
            return
        (values, copied, info, scaled), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        loss, norm = values.tolist()
        if not math.isfinite(loss):
            raise _not_finite(f"the loss is {loss}", info)
        if scaled:
            self._skipped.record(not math.isfinite(norm), info)
        elif not math.isfinite(norm):
            raise _not_finite(f"the loss is {loss:.4g}, but its gradient is not finite", info)

    def finish(self) -> None:
        """Check the last recorded step, and raise TrainingError if the fp16 loss scaler skipped every step."""
        self.check()
        self._skipped.finish()


def _describe(info: StepInfo) -> str:
    """Return "at step 3 (learning rate 0.01), rows 4, 7 of a.csv"."""
    shown = ", ".join(map(str, info.rows[:_MAX_ROWS_SHOWN]))
    more = f" and {len(info.rows) - _MAX_ROWS_SHOWN} more" if len(info.rows) > _MAX_ROWS_SHOWN else ""
    return f"at step {info.step} (learning rate {info.learning_rate:g}), rows {shown}{more} of {info.source}"


def _not_finite(problem: str, info: StepInfo) -> TrainingError:
    """Return the error for a step: the problem, the step, and possible fixes."""
    return TrainingError(
        f"{problem} {_describe(info)}; the weights are those before the step, and no checkpoint was written since. "
        "Check these rows, lower training.learning_rate, or set training.mixed_precision: no"
    )
