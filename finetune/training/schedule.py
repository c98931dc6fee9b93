"""The training plan: number of steps, when to log, evaluate and save, and defaults that depend on data and model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accelerate import Accelerator

from finetune.data.sampler import steps_in_epoch
from finetune.recipe.schema import Recipe
from finetune.recipe.training_section import TrainingSection
from finetune.training.state import TrainState

# Fine-tuning needs a few hundred steps, even with few rows: after three epochs of 360 rows (30 steps) a classifier
# still predicts the most frequent class.
MIN_STEPS = 300
# More labels need more steps: 400 rows of Banking77 with 76 labels give a test accuracy of 0.295 after 322 steps,
# and of 0.594 after 900.
MIN_STEPS_PER_LABEL = 10
MIN_EPOCHS = 3
MAX_EVALUATIONS = 10
# 1e-4 at width 384 (MiniLM), 5e-5 at width 768 (BERT-base; Devlin et al. 2019 search 2e-5 to 5e-5): the best learning
# rate of Adam is proportional to 1 / width (Yang et al. 2021). Adapters need about ten times the rate of full training.
RATE_TIMES_WIDTH = 0.04
LORA_FACTOR = 10


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
        assert rate is not None, "fill_in sets a learning rate that is missing in the recipe"
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


def make_plan(recipe: Recipe, *, rows: int, processes: int, labels: int = 1) -> Plan:
    """Return the plan for a number of training rows, processes and labels.

    If the recipe sets neither epochs nor steps, training takes MIN_EPOCHS epochs, or more if MIN_STEPS steps and
    MIN_STEPS_PER_LABEL steps per label need more. If it sets no epochs, there are at most MAX_EVALUATIONS evaluations
    and checkpoints, unless it sets their strategy. `training.warmup_steps` below 1 is a share of all steps, rounded up.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    batch_size = training.per_device_train_batch_size * processes
    accumulation = training.gradient_accumulation_steps
    steps = steps_in_epoch(rows, batch_size=batch_size, accumulation=accumulation)
    epochs, default = training.num_train_epochs, 0  # evaluate and save after every epoch
    if epochs is None:
        min_steps = max(MIN_STEPS, MIN_STEPS_PER_LABEL * labels, MIN_EPOCHS * steps)
        epochs = math.ceil((training.max_steps or min_steps) / steps)
        epochs_between = math.ceil(epochs / MAX_EVALUATIONS)
        default = epochs_between * steps if epochs_between > 1 else 0
    total = min(steps * epochs, training.max_steps or steps * epochs)
    warmup = training.warmup_steps
    return Plan(
        batch_size=batch_size,
        accumulation=accumulation,
        steps_per_epoch=steps,
        epochs=epochs,
        total_steps=total,
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * total),
        log_every=recipe.logging.logging_steps,
        eval_every=_interval(evaluation.eval_strategy, evaluation.eval_steps, default),
        save_every=_interval(checkpoint.save_strategy, checkpoint.save_steps, default),
        patience=evaluation.early_stopping_patience,
    )


def _interval(strategy: str | None, steps: int | None, default: int) -> int | None:
    """Return the interval of an `eval_strategy` or `save_strategy` in steps, as in `Plan.due`."""
    return {None: default, "no": None, "epoch": 0, "steps": steps}[strategy]


def default_learning_rate(hidden_size: int, *, lora: bool) -> float:
    """Return the peak learning rate of AdamW for a model of this hidden size, rounded to one digit."""
    return float(f"{RATE_TIMES_WIDTH / hidden_size * (LORA_FACTOR if lora else 1):.0e}")


def fill_in(recipe: Recipe, plan: Plan, hidden_size: int) -> tuple[Recipe, str]:
    """Return the recipe with its missing settings filled in, and a line that lists them ("" if none was missing).

    Args:
        plan: the plan of this recipe.
        hidden_size: that of the model.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    filled_in: list[str] = []
    if training.num_train_epochs is None:
        training = training.model_copy(update={"num_train_epochs": plan.epochs})
        filled_in.append(
            f"{plan.epochs} epochs ({plan.total_steps} steps of up to {plan.batch_size * plan.accumulation} rows)"
        )
    if training.learning_rate is None:
        rate = default_learning_rate(hidden_size, lora=recipe.peft is not None)
        training = training.model_copy(update={"learning_rate": rate})
        filled_in.append(
            f"learning rate {rate:g} ({'LoRA' if recipe.peft else 'full training'} at width {hidden_size})"
        )
    if evaluation.eval_strategy is None:
        evaluation = evaluation.model_copy(update=_strategy("eval", plan.eval_every))
    if checkpoint.save_strategy is None:
        checkpoint = checkpoint.model_copy(update=_strategy("save", plan.save_every))
    filled = recipe.model_copy(update={"training": training, "evaluation": evaluation, "checkpoint": checkpoint})
    return filled, f"Not set in the recipe, so chosen: {', '.join(filled_in)}." if filled_in else ""


def _strategy(name: str, interval: int | None) -> dict[str, object]:
    """Return the recipe keys that set an interval of the plan; `name` is "eval" or "save"."""
    return {f"{name}_strategy": "steps", f"{name}_steps": interval} if interval else {f"{name}_strategy": "epoch"}
