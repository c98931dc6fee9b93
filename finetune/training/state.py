"""The counters of a training run, and the state of the random number generators, as checkpoints store them.

N rows of the training split
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from finetune.data.sampler import Step

_NAME_IN_JSON = {"weight_decay_factor": "undecayed"}  # the field's name in checkpoints since version 3


@dataclass
class TrainState:
    """Counters of a training run, and its best evaluation so far.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        step_in_epoch: optimizer steps done in the current epoch.
        best_step: the step of the best evaluation, None before the first one.
        best_value: the metric at the best evaluation, None if it was undefined in every evaluation.
        best_loss: the loss at the best evaluation.
        peak_value: the best value of the metric so far; `best_value` may be below it by the tolerance.
        evaluations_since_best: evaluations since the best one, for early stopping.
        micro_batch_rows: maximum rows per forward pass and process, set when memory ran out; None: no limit.
        weight_decay_factor: product of 1 - learning rate * weight decay over all steps. A weight that never has a
            gradient is its initial value times this factor.
        train_seconds, eval_seconds: time spent in optimizer steps and in evaluations.
        rows_seen, tokens_seen, padded_seen: rows, tokens without padding, and tokens with padding used for training.
        rows_evaluated: rows of all evaluations.
        logged_seconds, logged_rows: `train_seconds` and `rows_seen` at the last logged step.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    peak_value: float | None = None
    evaluations_since_best: int = 0
    micro_batch_rows: int | None = None
    weight_decay_factor: float = 1.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    rows_seen: int = 0
    tokens_seen: int = 0
    padded_seen: int = 0
    rows_evaluated: int = 0
    logged_seconds: float = 0.0
    logged_rows: int = 0

    def count_rows(self, lengths: np.ndarray, step: Step) -> None:
        """Add the rows and tokens of an optimizer step; `lengths`: number of tokens of every row, (N,)."""
        self.rows_seen += sum(len(batch) for batch in step)
        self.tokens_seen += int(sum(lengths[batch].sum() for batch in step))
        self.padded_seen += int(sum(len(batch) * lengths[batch].max() for batch in step))

    def count_step(self, steps_per_epoch: int) -> None:
        """Add one optimizer step."""
        self.step += 1
        self.step_in_epoch += 1
        if self.step_in_epoch == steps_per_epoch:
            self.epoch += 1
            self.step_in_epoch = 0

    def record_evaluation(
        self, value: float | None, *, loss: float, lower_is_better: bool, tolerance: float = 0.0
    ) -> bool:
        """Record an evaluation and return whether it is the best so far.

        Of two evaluations with the same metric, the one with the lower loss is better: a model that still predicts the
        same labels, but with a falling loss, is learning. Any value is better than None (undefined).

        Args:
            tolerance: distance from the best value so far within which a later evaluation is better than an earlier
                one. On few validation rows such a difference is chance, and later weights have been trained for longer.
        """
        best, sign = self.best_value, -1 if lower_is_better else 1
        peak = best if self.peak_value is None else self.peak_value  # checkpoints of earlier versions have no peak
        self.peak_value = value if peak is None or (value is not None and sign * (value - peak) > 0) else peak
        if self.best_step is not None and value == best:
            better = self.best_loss is not None and loss < self.best_loss
        elif value is None or best is None or self.peak_value is None:
            better = self.best_step is None or value is not None
        else:
            better = sign * (value - best) > 0 or sign * (self.peak_value - value) < tolerance
        if better:
            self.best_value, self.best_loss, self.best_step = value, loss, self.step
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def to_json(self) -> dict[str, Any]:
        """Return the content of a checkpoint's state.json."""
        return {_NAME_IN_JSON.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainState:
        """Return the state stored in a checkpoint's state.json."""
        names = {stored: name for name, stored in _NAME_IN_JSON.items()}
        return cls(**{names.get(name, name): value for name, value in content.items()})


def random_state() -> dict[str, Any]:
    """Return the state of this process's random number generators by device type: CPU, and an accelerator in use."""
    return {"cpu": torch.get_rng_state()} | {
        name: module.get_rng_state() for name, module in _accelerator_modules().items()
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the random number generators of this process to a state that `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    for name, module in _accelerator_modules().items():
        if name in state:
            module.set_rng_state(state[name])


def _accelerator_modules() -> dict[str, ModuleType]:
    """Return the torch module of the accelerator by its device type; empty if no accelerator is in use.

    A CPU run on a machine with a GPU must not touch the GPU: reading its state would allocate GPU memory.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return {}
    module = torch.get_device_module(device)
    in_use = getattr(module, "is_initialized", lambda: True)()  # MPS has no such function
    return {device.type: module} if in_use else {}
