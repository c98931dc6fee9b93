"""The training plan: number of steps, and when to log, evaluate and save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accelerate import Accelerator

from finetune.recipe.schema import Recipe
from finetune.recipe.training_section import TrainingSection
from finetune.training.auto_settings import steps_per_epoch
from finetune.training.state import TrainState


@dataclass(frozen=True)
class Plan:
    """The plan of a training run, in optimizer steps.

    Attributes:
        batch_size: rows of one micro-batch over all processes.
        accumulation: micro-batches per optimizer step.
        warmup_steps: steps of linear warm-up.
        log_every: steps between two history entries.
        eval_every, save_every: steps between two evaluations or checkpoints; 0: at the end of each epoch; None: never.
        patience: evaluations without a better one after which training stops; None: no early stopping.
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

    def due(self, interval: int | None, step: int) -> bool:
        """Return whether a task with this interval in steps (0: one epoch, None: never) is due after step `step`."""
        if interval is None:
            return False
        return step == self.total_steps or step % (interval or self.steps_per_epoch) == 0

    def fingerprint(self, rows: int, accelerator: Accelerator) -> dict[str, object]:
        """Return the part of the run fingerprint that the plan determines; `rows`: number of training rows."""
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
        """Return a warning if the run is shorter than its warm-up, else ""."""
        if self.warmup_steps <= self.total_steps or training.lr_scheduler_type == "constant":
            return ""
        rate = training.learning_rate
        assert isinstance(rate, float), "auto_settings.fill_in sets a learning rate that is left to auto"
        reached = rate * self.total_steps / self.warmup_steps
        return (
            f"The warm-up takes {self.warmup_steps:,} steps, but the run has only {self.total_steps:,}: the learning "
            f"rate ends at {reached:.3g} and never reaches {rate:g}. Set training.warmup_steps to a "
            "share of all steps, such as 0.06, or train for longer."
        )

    def stop_reason(self, state: TrainState) -> str | None:
        """Return why training ends after this step, None if it continues."""
        if self.patience and state.evaluations_since_best >= self.patience:
            return f"no better evaluation in {self.patience}"
        if state.step < self.total_steps:
            return None
        all_epochs = self.total_steps == self.epochs * self.steps_per_epoch
        return "all epochs done" if all_epochs else f"max_steps ({self.total_steps}) reached"


def make_plan(recipe: Recipe, *, rows: int, processes: int) -> Plan:
    """Return the plan for a number of training rows and processes.

    `training.warmup_steps` below 1 is a share of all steps, rounded up.

    Args:
        recipe: without `auto`, as `auto_settings.fill_in` returns it.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    batch_size, epochs, warmup = training.per_device_train_batch_size, training.num_train_epochs, training.warmup_steps
    patience = evaluation.early_stopping_patience
    assert isinstance(batch_size, int)  # fill_in sets these four
    assert isinstance(epochs, int)
    assert warmup != "auto"
    assert patience != "auto"
    steps = steps_per_epoch(recipe, rows, processes)
    total = min(steps * epochs, training.max_steps or steps * epochs)
    return Plan(
        batch_size=batch_size * processes,
        accumulation=training.gradient_accumulation_steps,
        steps_per_epoch=steps,
        epochs=epochs,
        total_steps=total,
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * total),
        log_every=recipe.logging.logging_steps,
        eval_every=_interval(evaluation.eval_strategy, evaluation.eval_steps),
        save_every=_interval(checkpoint.save_strategy, checkpoint.save_steps),
        patience=patience,
    )


def _interval(strategy: str | None, steps: int) -> int | None:
    """Return the interval of an `eval_strategy` or `save_strategy` in steps, as in `Plan.due`."""
    return {None: 0, "no": None, "epoch": 0, "steps": steps}[strategy]
