"""One optimizer step: gradients of all micro-batches, then one update of the weights.

Losses are summed over each micro-batch and divided by the number of examples in the optimizer step. The gradient is
therefore that of the mean loss, also with a short last batch, gradient accumulation and several processes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.data.batching import LocalBatch, split_batch
from finetune.distributed import CpuGroup
from finetune.out_of_memory import halve_rows, is_out_of_memory, oom_message
from finetune.recipe.training_section import TrainingSection
from finetune.signals import StopRequest
from finetune.training.fsdp import average_replicas, full_state, full_tensor, is_sharded
from finetune.training.nonfinite import FiniteCheck, StepInfo, gradient_norm
from finetune.training.objective import Objective
from finetune.training.optimizer import clip_gradients
from finetune.training.state import TrainState, random_state, restore_random_state
from finetune.training.training_model import TrainingModel


@dataclass(frozen=True)
class StepResult:
    """The result of an optimizer step.

    Attributes:
        loss: mean loss of the step's examples over all processes, ().
        gradient_norm: norm of the gradient before clipping, (); not finite in a step that the fp16 scaler skipped.
        stop_signal: the signal that one of the processes received, 0 if none did.
        messages: lines to print.
    """

    loss: Tensor
    gradient_norm: Tensor
    stop_signal: int
    messages: list[str]


@dataclass(eq=False)
class Stepper:
    """Runs optimizer steps.

    Attributes:
        model: the model during training.
        optimizer: AdamW, prepared by Accelerate.
        scheduler: the learning rate scheduler, not prepared by Accelerate, which would advance it once per process.
        objective: the loss that training minimizes.
        accelerator: device, precision and processes.
        training: the recipe's section `training`.
        batch_size: rows of a full micro-batch on this process.
        loss_unit: the loss is divided by it to compute the gradients, but reported undivided. It is 1, except in a
            regression on standardized targets (models/target_scaling.py).
        parameters: all parameters that the optimizer updates.
    """

    model: TrainingModel
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    objective: Objective
    accelerator: Accelerator
    training: TrainingSection
    batch_size: int
    loss_unit: float = 1.0
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._cpu_group = CpuGroup(self.accelerator)
        self._finite_check = FiniteCheck(delayed=self.accelerator.device.type == "cuda")

    def run(
        self, micro_batches: Sequence[LocalBatch], info: StepInfo, state: TrainState, stop_request: StopRequest | None
    ) -> StepResult:
        """Do one optimizer step on the mean loss of the examples in `info`.

        If memory runs out on a process, all processes repeat the step with smaller micro-batches and the same random
        state.

        Raises:
            TrainingError: the loss or gradient is not finite, or memory does not suffice for one row.
        """
        self.model.module.train()
        random, messages = random_state(), []
        while True:
            loss, stop_signal = self._accumulate_gradients(micro_batches, info, state, stop_request)
            if loss is not None:
                break
            messages.append(self._halve_micro_batches(info, state))
            restore_random_state(random)
        average_replicas(self.parameters, self.accelerator)
        loss = self.accelerator.reduce(loss, "mean")
        norm = self._update_weights(loss, info, state)
        return StepResult(loss, norm, stop_signal, messages)

    def stateful_objects(self) -> dict[str, Any]:
        """Return, by name, the objects whose `state_dict` is part of a checkpoint."""
        optional = {"scaler": self.accelerator.scaler, "average": self.model.average}
        return {
            "optimizer": full_state(self.optimizer, self.accelerator),
            "scheduler": self.scheduler,
            **{name: item for name, item in optional.items() if item is not None},
        }

    def check_last_step(self) -> None:
        """Raise TrainingError if the loss or gradient of the last step was not finite."""
        self._finite_check.check()

    def check_training(self) -> None:
        """Raise TrainingError if the last step was not finite, or if fp16 skipped every step."""
        self._finite_check.finish()

    def sync_stop_signal(self, stop_request: StopRequest | None) -> int:
        """Return the signal that one of the processes received, 0 if none did."""
        (stop_signal,) = self._cpu_group.all_reduce_max(stop_request.number if stop_request else 0)
        return stop_signal

    def _accumulate_gradients(
        self, micro_batches: Sequence[LocalBatch], info: StepInfo, state: TrainState, stop_request: StopRequest | None
    ) -> tuple[Tensor | None, int]:
        """Accumulate the gradients of a step, and return this process's share of the loss and the stop signal.

        The loss is None if memory ran out on any process.
        """
        loss, out_of_memory = torch.zeros((), device=self.accelerator.device), False
        smaller_batches = [part for batch in micro_batches for part in split_batch(batch, state.micro_batch_rows)]
        # Gradients are averaged over the processes, so each loss is multiplied by their number. `info.rows` are the
        # rows of all processes.
        scale = self.accelerator.num_processes / len(info.rows) / self.loss_unit
        try:
            for batch in smaller_batches:
                batch_loss = (self.objective.losses(self.model, batch) * batch.weights).sum() * scale
                self.accelerator.backward(batch_loss)
                loss += batch_loss.detach() * self.loss_unit
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded(self.accelerator):  # the other processes wait inside a pass, so none can repeat the step
                message = f"Out of memory at step {info.step} in process {self.accelerator.process_index}."
                print(message, file=sys.stderr)
                raise
            out_of_memory = True  # the caller repeats the step: here, `error` still refers to tensors of this attempt
        any_out_of_memory, stop_signal = self._cpu_group.all_reduce_max(
            out_of_memory, stop_request.number if stop_request else 0
        )
        return None if any_out_of_memory else loss, stop_signal

    def _halve_micro_batches(self, info: StepInfo, state: TrainState) -> str:
        """Halve the rows per forward pass and return a message; the step then has twice as many micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        rows = halve_rows(state.micro_batch_rows or self.batch_size, f"step {info.step} of training")
        state.micro_batch_rows = rows
        return oom_message(rows, self.batch_size, info.step)

    def _embedding_rate(self) -> float:
        """Return the learning rate of the token embeddings if a subset of them is trained, else 0."""
        rows = None if self.model.embeddings is None else self.model.embeddings.rows
        groups = [group for group in self.optimizer.param_groups if any(p is rows for p in group["params"])]
        return float(groups[0]["lr"]) if groups else 0.0

    def _update_weights(self, loss: Tensor, info: StepInfo, state: TrainState) -> Tensor:
        """Update the weights, unless the loss or gradient is not finite, and return the norm of the gradient, ()."""
        optimizer, scaler, max_norm = self.optimizer.optimizer, self.accelerator.scaler, self.training.max_grad_norm
        if scaler is None:
            norm = gradient_norm(self.parameters)
            if max_norm is not None:
                clip_gradients(optimizer, self.parameters, norm, max_norm)
            # Fused AdamW skips a step if `found_inf` is set, without a copy to the CPU.
            optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()
        else:
            limit = math.inf if max_norm is None else max_norm
            norm = full_tensor(self.accelerator.clip_grad_norm_(self.parameters, limit)).float()
        average, embedding_rate = self.model.average, self._embedding_rate()
        # Read whether the scaler skips the step only if it matters here: a GPU would wait for it.
        read_scale = scaler is not None and (average is not None or embedding_rate > 0)
        scale = scaler.get_scale() if read_scale else 0.0
        self.optimizer.step()
        if not (read_scale and scaler.get_scale() < scale):
            state.weight_decay_factor *= 1 - embedding_rate * self.training.weight_decay
            if average is not None:
                average.update(state.weight_decay_factor)
        self.scheduler.step()  # also after a step that the scaler skipped: learning rate and step stay together
        self.optimizer.zero_grad(set_to_none=True)
        self._finite_check.record(loss, norm, info, scaled=scaler is not None)
        return norm
