"""Where training stands, to be written down and gone on from.

N steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import Step


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done.
        step_in_epoch: optimiser steps done in the current epoch.
        best_step: the step of the best evaluation, None before the first.
        best_value: its metric, None where that was undefined in every evaluation.
        best_loss: its loss.
        evaluations_since_best: evaluations without a better metric, for early stopping.
        micro_batch_rows: rows at a time in a process, where memory had run out; None: as many as asked for.
        undecayed: the share of a weight without gradients that weight decay has left.
        train_seconds, eval_seconds: time spent in steps, and in evaluations.
        rows_seen, tokens_seen, padded_seen: rows, real tokens, and tokens with padding that were trained on.
        rows_evaluated: rows of all evaluations.
        logged_seconds, logged_rows: of `train_seconds` and `rows_seen`, what the history has told.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    evaluations_since_best: int = 0
    micro_batch_rows: int | None = None
    undecayed: float = 1.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    rows_seen: int = 0
    tokens_seen: int = 0
    padded_seen: int = 0
    rows_evaluated: int = 0
    logged_seconds: float = 0.0
    logged_rows: int = 0

    def count_rows(self, lengths: np.ndarray, step: Step) -> None:
        """Count the rows of a step and their tokens; `lengths`: of all rows, (N,)."""
        self.rows_seen += sum(len(batch) for batch in step)
        self.tokens_seen += int(sum(lengths[batch].sum() for batch in step))
        self.padded_seen += int(sum(len(batch) * lengths[batch].max() for batch in step))

    def note_evaluation(self, value: float | None, *, loss: float, lower_is_better: bool) -> bool:
        """Count an evaluation; return whether it is the best so far.

        Of equal values the one with the lower loss is better, and any value is better than None (undefined). A lower
        loss at an equal value does not reset `evaluations_since_best`.
        """
        best = self.best_value
        tie = self.best_step is not None and value == best
        if tie:
            better = self.best_loss is not None and loss < self.best_loss
        elif value is None or best is None:
            better = self.best_step is None or value is not None
        else:
            better = value < best if lower_is_better else value > best
        if better:
            self.best_value, self.best_loss, self.best_step = value, loss, self.step
        improved = better and (value is None or not tie)
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        return better


@dataclass(frozen=True)
class Progress:
    """Where training stands, the weights of the best evaluation, and the losses of steps not logged yet, (N,)."""

    state: TrainState
    best: dict[str, Tensor] | None
    losses: Tensor


def random_state() -> dict[str, Any]:
    """Return the state of this process's generators, by type of device: the CPU, and an accelerator that is in use."""
    return {"cpu": torch.get_rng_state()} | {name: module.get_rng_state() for name, module in _accelerator().items()}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the state of this process's generators back."""
    torch.set_rng_state(state["cpu"])
    for name, module in _accelerator().items():
        if name in state:
            module.set_rng_state(state[name])


def _accelerator() -> dict[str, ModuleType]:
    """Return the accelerator's type and torch's module for it; nothing where none is in use.

    A run on the CPU of a machine with a GPU does not touch the GPU: to ask for its state would take memory there.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return {}
    module = torch.get_device_module(device)
    in_use = getattr(module, "is_initialized", lambda: True)()  # MPS has no such function
    return {device.type: module} if in_use else {}
