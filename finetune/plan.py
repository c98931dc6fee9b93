"""When things happen in training: how many steps there are, and what falls due after each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accelerate import Accelerator

from finetune.data.batching import steps_in_epoch
from finetune.recipe import Recipe, TrainingSection
from finetune.state import TrainState


@dataclass(frozen=True)
class Plan:
    """The schedule of a run, in optimiser steps.

    Attributes:
        batch_size: rows of one micro-batch over all processes.
        accumulation: micro-batches in an optimiser step.
        warmup_steps: steps of linear warm-up.
        eval_every, save_every: steps between two evaluations or checkpoints; 0: at the end of each epoch;
            None: never.
        patience: evaluations without a better one after which training stops; None: all are run.
    """

    batch_size: int
    accumulation: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    warmup_steps: int
    log_every: int
    eval_every: int | None
    save_every: int | None
    patience: int | None

    def due(self, every: int | None, step: int) -> bool:
        """Return whether something done `every` so many steps is due after optimiser step `step`."""
        if every is None:
            return False
        return step == self.total_steps or step % (every or self.steps_per_epoch) == 0

    def facts(self, rows: int, accelerator: Accelerator) -> dict[str, object]:
        """Return what two runs must share to be one: which rows meet in a step, at what rate, added up where."""
        return {
            "training rows": rows,
            "rows of a batch over all processes": self.batch_size,
            "batches of a step": self.accumulation,
            "steps": self.total_steps,
            "warm-up steps": self.warmup_steps,
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
        }

    def warmup_note(self, training: TrainingSection) -> str:
        """Return a warning if the run ends before its warm-up, with the learning rate that it then reaches, else ""."""
        if self.warmup_steps <= self.total_steps or training.lr_scheduler_type == "constant":
            return ""
        reached = training.learning_rate * self.total_steps / self.warmup_steps
        return (
            f"The warm-up takes {self.warmup_steps:,} steps, but the run has only {self.total_steps:,}: the learning "
            f"rate ends at {reached:.3g} and never reaches {training.learning_rate:g}. Set training.warmup_steps to a "
            "share of the run, such as 0.06, or train for longer."
        )

    def stop_reason(self, state: TrainState) -> str | None:
        """Return why training ends here, or None where it goes on."""
        if self.patience and state.evaluations_since_best >= self.patience:
            return f"no better evaluation in {self.patience}"
        if state.step < self.total_steps:
            return None
        whole = self.total_steps == self.epochs * self.steps_per_epoch
        return "all epochs done" if whole else f"max_steps ({self.total_steps}) reached"


def make_plan(recipe: Recipe, *, rows: int, processes: int) -> Plan:
    """Return the plan for `rows` training rows on `processes` processes.

    `training.warmup_steps` below 1 is a share of all steps, rounded up.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    batch_size = training.per_device_train_batch_size * processes
    accumulation = training.gradient_accumulation_steps
    steps = steps_in_epoch(rows, batch_size=batch_size, accumulation=accumulation)
    total = min(steps * training.num_train_epochs, training.max_steps or steps * training.num_train_epochs)
    warmup = training.warmup_steps
    return Plan(
        batch_size=batch_size,
        accumulation=accumulation,
        steps_per_epoch=steps,
        epochs=training.num_train_epochs,
        total_steps=total,
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * total),
        log_every=recipe.logging.logging_steps,
        eval_every={"no": None, "epoch": 0, "steps": evaluation.eval_steps}[evaluation.eval_strategy],
        save_every={"no": None, "epoch": 0, "steps": checkpoint.save_steps}[checkpoint.save_strategy],
        patience=evaluation.early_stopping_patience,
    )
