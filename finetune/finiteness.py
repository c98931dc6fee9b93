"""Steps whose loss or gradient is not finite: left out of the weights, and told without keeping a device waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from finetune.errors import TrainingError
from finetune.sharding import whole_tensor

_MOST_ROWS = 64


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

    On a CPU at once. On an accelerator one step later, or when asked, so that it never stands still for the answer:
    the weights need no such haste, since the optimiser has left the step out (its `found_inf`).
    """

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._pending: tuple[Tensor, torch.cuda.Event | None, StepFacts] | None = None

    def note(self, loss: Tensor, norm: Tensor, facts: StepFacts) -> None:
        """Take the loss and the norm of the gradient of a step, both of no dimension."""
        self.settle()
        values = torch.stack([loss.float(), norm.float()]).to("cpu", non_blocking=True)
        arrived = None
        if loss.device.type == "cuda":
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


def _refusal(found: str, facts: StepFacts) -> TrainingError:
    """Return the error about a step: what was found, where, and what may help."""
    shown = ", ".join(map(str, facts.rows[:_MOST_ROWS]))
    more = f" and {len(facts.rows) - _MOST_ROWS} more" if len(facts.rows) > _MOST_ROWS else ""
    return TrainingError(
        f"{found} at step {facts.step} (learning rate {facts.learning_rate:g}), rows {shown}{more} of {facts.where}; "
        "the weights are those before the step, and no checkpoint was written since. Look at these rows, lower "
        "training.learning_rate, or set training.mixed_precision: no"
    )
