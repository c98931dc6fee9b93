"""Steps whose loss or gradient is not finite: skipped, and reported without keeping a device waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from finetune.errors import TrainingError
from finetune.training.fsdp import whole_tensor

_MOST_ROWS = 64
# The loss scale starts at 65,536 and is halved by each skipped step; a few are usual at the start of a run.
MAX_SKIPPED = 10


@dataclass(frozen=True)
class StepFacts:
    """What a message says of a step: its number, learning rate, rows as their source numbers them, and the source."""

    step: int
    learning_rate: float
    rows: np.ndarray
    where: str


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, in float32, of no dimension."""
    return whole_tensor(get_total_norm([p.grad for p in parameters if p.grad is not None])).float()


class FiniteCheck:
    """Raises TrainingError for a step whose loss or gradient is not finite.

    At once, or with `late` one step later, or when asked, so that a GPU never stands still for the answer: the weights
    need no such haste, since the optimizer has skipped the step (its `found_inf`).
    """

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._pending: tuple[Tensor, torch.cuda.Event | None, StepFacts] | None = None

    def note(self, loss: Tensor, norm: Tensor, facts: StepFacts) -> None:
        """Take the loss and the norm of the gradient of a step, both of no dimension."""
        self.settle()
        cuda = loss.device.type == "cuda"  # of other devices a copy that is not waited for may be read too early
        values = torch.stack([loss.float(), norm.float()]).to("cpu", non_blocking=cuda)
        arrived = None
        if cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = values, arrived, facts
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Look at what was noted last.

        Raises:
            TrainingError: it is not finite.
        """
        if self._pending is None:
            return
        (values, arrived, facts), self._pending = self._pending, None
        if arrived is not None:
            arrived.synchronize()
        loss, norm = values.tolist()
        if not math.isfinite(loss):
            raise _refusal(f"the loss is {loss}", facts)
        if not math.isfinite(norm):
            raise _refusal(f"the loss is {loss:.4g}, but its gradient is not finite", facts)


class SkippedSteps:
    """Counts the steps in a row that the loss scaler of fp16 skipped because their gradient was not finite."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._last: StepFacts | None = None

    def note(self, skipped: bool, facts: StepFacts) -> None:
        """Count a step.

        Raises:
            TrainingError: it is the last of MAX_SKIPPED skipped steps in a row.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        self._last = facts
        if self._in_a_row == MAX_SKIPPED:
            raise self._refusal()

    def finish(self) -> None:
        """Raise TrainingError if every step from the first of the run on was skipped, so that nothing was trained.

        One step alone, as a dry run does it, proves nothing: the scale may only have started too high for it.
        """
        if self._last is not None and self._in_a_row == self._last.step > 1:
            raise self._refusal()

    def _refusal(self) -> TrainingError:
        assert self._last is not None
        return TrainingError(
            f"fp16: the gradient was not finite in {self._in_a_row} steps in a row, the last {_place(self._last)}; a "
            "skipped step changes no weight. Set training.mixed_precision: bf16 or no, lower training.learning_rate, "
            "or look at these rows"
        )


def _place(facts: StepFacts) -> str:
    """Return "at step 3 (learning rate 0.01), rows 4, 7 of a.csv"."""
    shown = ", ".join(map(str, facts.rows[:_MOST_ROWS]))
    more = f" and {len(facts.rows) - _MOST_ROWS} more" if len(facts.rows) > _MOST_ROWS else ""
    return f"at step {facts.step} (learning rate {facts.learning_rate:g}), rows {shown}{more} of {facts.where}"


def _refusal(found: str, facts: StepFacts) -> TrainingError:
    """Return the error about a step: what was found, where, and what may help."""
    return TrainingError(
        f"{found} {_place(facts)}; the weights are those before the step, and no checkpoint was written since. Look at "
        "these rows, lower training.learning_rate, or set training.mixed_precision: no"
    )
