"""The schedule of training: how many steps there are, what is done after each, and what a recipe leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accelerate import Accelerator

from finetune.data.batching import steps_in_epoch
from finetune.recipe import Recipe, TrainingSection
from finetune.training.state import TrainState

# Fine-tuning takes a few hundred steps however few rows there are: after the 30 steps of three epochs of 360 rows a
# classifier still answers with the most frequent class.
MIN_STEPS = 300
# Each label takes steps of its own: 400 rows of Banking77 with 76 labels give a test accuracy of 0.295 after 322 steps,
# and of 0.594 after 900.
MIN_STEPS_PER_LABEL = 10
MIN_EPOCHS = 3
MAX_EVALUATIONS = 10
# 1e-4 at the width 384 of MiniLM, 5e-5 at the 768 of BERT-base (Devlin et al. 2019 search 2e-5 to 5e-5): the best rate
# of Adam goes by 1 / width (Yang et al. 2021). Adapters take about ten times the rate of full training.
RATE_TIMES_WIDTH = 0.04
LORA_FACTOR = 10


@dataclass(frozen=True)
class Plan:
    """The schedule of a run, in optimizer steps.

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
        rate = training.learning_rate
        assert rate is not None, "fill_in chooses the learning rate that a recipe leaves open"
        reached = rate * self.total_steps / self.warmup_steps
        return (
            f"The warm-up takes {self.warmup_steps:,} steps, but the run has only {self.total_steps:,}: the learning "
            f"rate ends at {reached:.3g} and never reaches {rate:g}. Set training.warmup_steps to a "
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


def make_plan(recipe: Recipe, *, rows: int, processes: int, labels: int = 1) -> Plan:
    """Return the plan for `rows` training rows with `labels` different labels on `processes` processes.

    `training.warmup_steps` below 1 is a share of all steps, rounded up. Where neither epochs nor steps are set, there
    are MIN_EPOCHS epochs, or more until they are MIN_STEPS steps, and MIN_STEPS_PER_LABEL for each label. Where the
    number of epochs is not set, there are at most MAX_EVALUATIONS evaluations and as many checkpoints, unless their
    strategy is set.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    batch_size = training.per_device_train_batch_size * processes
    accumulation = training.gradient_accumulation_steps
    steps = steps_in_epoch(rows, batch_size=batch_size, accumulation=accumulation)
    epochs, every = training.num_train_epochs, 0
    if epochs is None:
        fewest = max(MIN_STEPS, MIN_STEPS_PER_LABEL * labels, MIN_EPOCHS * steps)
        epochs = math.ceil((training.max_steps or fewest) / steps)
        between = math.ceil(epochs / MAX_EVALUATIONS)
        every = between * steps if between > 1 else 0
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
        eval_every={None: every, "no": None, "epoch": 0, "steps": evaluation.eval_steps}[evaluation.eval_strategy],
        save_every={None: every, "no": None, "epoch": 0, "steps": checkpoint.save_steps}[checkpoint.save_strategy],
        patience=evaluation.early_stopping_patience,
    )


def default_learning_rate(width: int, *, lora: bool) -> float:
    """Return the peak learning rate of AdamW for a model of this hidden size, rounded to one digit."""
    return float(f"{RATE_TIMES_WIDTH / width * (LORA_FACTOR if lora else 1):.0e}")


def fill_in(recipe: Recipe, plan: Plan, width: int) -> tuple[Recipe, str]:
    """Return the recipe with what it left open as the plan has it, and a line that says so ("" if nothing was open).

    Args:
        plan: the plan of this recipe.
        width: the model's hidden size.
    """
    training, evaluation, checkpoint = recipe.training, recipe.evaluation, recipe.checkpoint
    said: list[str] = []
    if training.num_train_epochs is None:
        training = training.model_copy(update={"num_train_epochs": plan.epochs})
        said.append(
            f"{plan.epochs} epochs ({plan.total_steps} steps of up to {plan.batch_size * plan.accumulation} rows)"
        )
    if training.learning_rate is None:
        rate = default_learning_rate(width, lora=recipe.peft is not None)
        training = training.model_copy(update={"learning_rate": rate})
        said.append(f"learning rate {rate:g} ({'LoRA' if recipe.peft else 'full training'} at width {width})")
    if evaluation.eval_strategy is None:
        evaluation = evaluation.model_copy(update=_strategy("eval", plan.eval_every))
    if checkpoint.save_strategy is None:
        checkpoint = checkpoint.model_copy(update=_strategy("save", plan.save_every))
    filled = recipe.model_copy(update={"training": training, "evaluation": evaluation, "checkpoint": checkpoint})
    return filled, f"Not set in the recipe, so chosen: {', '.join(said)}." if said else ""


def _strategy(name: str, every: int | None) -> dict[str, object]:
    return {f"{name}_strategy": "steps", f"{name}_steps": every} if every else {f"{name}_strategy": "epoch"}
