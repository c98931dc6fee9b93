"""The settings that a recipe leaves to `auto`: rules, the constants they use, and a reason for each number.

A number that the recipe gives is never changed. Imports no torch, so that `finetune check` can show the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune.data.sampler import steps_in_epoch
from finetune.errors import TrainingError
from finetune.recipe.lr_schedules import lowest_rate_problem
from finetune.recipe.named_metrics import metric_bounds
from finetune.recipe.schema import Recipe

# Small data need many epochs: three epochs of a few hundred rows are too few steps to leave the majority class, and
# results differ between seeds (Mosbach et al. 2021; Zhang et al. 2021). After 30 steps on 360 rows of TREC, a
# classifier still predicts the most frequent class.
MIN_STEPS = 300
# A classification head with random weights needs more steps for more labels: 400 rows of Banking77 with 76 labels give
# a test accuracy of 0.295 after 322 steps, and of 0.594 after 900. A head that starts from a linear probe does not.
MIN_STEPS_PER_LABEL = 10
MIN_EPOCHS = 3
BATCH_SIZE = 16
MIN_STEPS_PER_EPOCH = 2  # smaller batches until an epoch has this many steps
MIN_CONTRASTIVE_BATCH = 4  # the contrastive loss compares the rows of a batch
# 1e-4 at width 384 (MiniLM), 5e-5 at width 768 (BERT-base; Devlin et al. 2019 search 2e-5 to 5e-5): the best learning
# rate of Adam is proportional to 1 / width (Yang et al. 2021). Adapters need about ten times the rate of full training.
RATE_TIMES_WIDTH = 0.04
LORA_FACTOR = 10
WARMUP_SHARE = 0.06
MAX_EVALUATIONS = 10
PATIENCE_SHARE = 0.5  # of the evaluations of the run
# A metric of 0.8 on N validation rows has a standard error of 0.4 / sqrt(N). Models whose scores differ by less cannot
# be distinguished (the one-standard-error rule: Breiman et al. 1984; Hastie et al. 2009, section 7.10), and the later
# weights are better: on 200 rows of TREC, 40 of them for validation, the highest value (step 60 of 300) had a test
# accuracy of 0.850, the last weights 0.904.
ERROR_TIMES_ROOT_ROWS = 0.4


@dataclass(frozen=True)
class RunSize:
    """The numbers that the settings depend on.

    Attributes:
        rows: training rows, without those that are held out for validation.
        labels: 1 for regression.
        hidden_size: that of the model; None if it is not known, so that no learning rate can be chosen.
        has_validation: whether there are validation rows.
        validation_rows: how many; None if it is not known.
        held_out: the share of the training rows that is held out for validation, None if none is.
        starts_from_probe: whether the classification head starts from a linear probe.
    """

    rows: int
    labels: int
    hidden_size: int | None
    has_validation: bool
    held_out: float | None = None
    validation_rows: int | None = None
    processes: int = 1
    starts_from_probe: bool = False


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen: section and key, the value, and the reason ("": not worth a line)."""

    section: str
    key: str
    value: float | str | None
    reason: str = ""


Rule = Callable[[Recipe, Recipe, RunSize], Iterator[Choice]]


def fill_in(recipe: Recipe, size: RunSize) -> tuple[Recipe, list[Choice]]:
    """Return the recipe with a number in place of every `auto`, and the choices that were made.

    The result gives the same run if it is trained again.

    Raises:
        TrainingError: the lowest learning rate of the schedule is not below the peak that was chosen.
    """
    filled, choices = recipe, []
    for rule in _RULES:
        for choice in rule(recipe, filled, size):
            section = getattr(filled, choice.section).model_copy(update={choice.key: choice.value})
            filled = filled.model_copy(update={choice.section: section})
            choices.append(choice)
    if problem := lowest_rate_problem(filled.training.lr_scheduler_kwargs, filled.training.learning_rate):
        raise TrainingError(f"training.lr_scheduler_kwargs: {problem}; lower it")
    return filled, choices


def describe_choices(choices: Sequence[Choice]) -> list[str]:
    """Return a heading, and one line per choice that has a reason: key, value and reason; [] if there is none."""
    lines = [f"  {choice.key:<27}  {choice.value:<6g}  {choice.reason}" for choice in choices if choice.reason]
    return ["Settings that the recipe leaves to auto:", *lines] if lines else []


def default_learning_rate(hidden_size: int, *, lora: bool) -> float:
    """Return the peak learning rate of AdamW for a model of this hidden size, rounded to one digit."""
    return float(f"{RATE_TIMES_WIDTH / hidden_size * (LORA_FACTOR if lora else 1):.0e}")


def _validation_size(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    if recipe.data.validation_size == "auto":
        reason = "share of the training rows, held out as no validation rows are given" if size.held_out else ""
        yield Choice("data", "validation_size", size.held_out, reason)


def _batch_size(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    if recipe.training.per_device_train_batch_size != "auto":
        return
    batch_size, per_batch = BATCH_SIZE, size.processes * recipe.training.gradient_accumulation_steps

    def steps() -> int:
        return steps_in_epoch(size.rows, batch_size=batch_size * per_batch, accumulation=1)

    smallest = MIN_CONTRASTIVE_BATCH if recipe.training.contrastive_weight else 1
    while batch_size > smallest and steps() < MIN_STEPS_PER_EPOCH:
        batch_size //= 2
    few = "; smaller than usual, as there are few rows" if batch_size < BATCH_SIZE else ""
    reason = f"{steps():,} step{'s' * (steps() > 1)} per epoch{few}"
    yield Choice("training", "per_device_train_batch_size", batch_size, reason)


def _epochs(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    if not epochs_are_open(recipe):
        return
    steps, max_steps = steps_per_epoch(filled, size.rows, size.processes), recipe.training.max_steps
    by_labels = 0 if size.starts_from_probe else MIN_STEPS_PER_LABEL * size.labels
    needed = max_steps or max(MIN_STEPS, by_labels, MIN_EPOCHS * steps)
    if max_steps:
        reason = f"enough for max_steps: {max_steps:,}"
    elif needed == MIN_EPOCHS * steps:
        reason = f"{needed:,} steps, at least {MIN_EPOCHS} epochs"
    elif needed == by_labels:
        reason = f"at least {needed:,} steps, {MIN_STEPS_PER_LABEL} for each of {size.labels:,} labels"
    else:
        reason = f"at least {needed:,} steps, as a model learns little in fewer"
    yield Choice("training", "num_train_epochs", math.ceil(needed / steps), reason)


def _intervals(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    """Evaluate and save after every epoch; if the number of epochs is chosen, at most MAX_EVALUATIONS times."""
    epochs = filled.training.num_train_epochs
    assert isinstance(epochs, int), "a rule before this one sets it"
    epochs_between = math.ceil(epochs / MAX_EVALUATIONS) if epochs_are_open(recipe) else 1
    steps = epochs_between * steps_per_epoch(filled, size.rows, size.processes)
    for section, prefix, strategy in (
        ("evaluation", "eval", recipe.evaluation.eval_strategy),
        ("checkpoint", "save", recipe.checkpoint.save_strategy),
    ):
        if strategy is None and epochs_between == 1:
            yield Choice(section, f"{prefix}_strategy", "epoch")
        elif strategy is None:
            yield Choice(section, f"{prefix}_strategy", "steps")
            yield Choice(section, f"{prefix}_steps", steps)


def _learning_rate(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    if recipe.training.learning_rate in ("auto", None) and size.hidden_size is not None:
        rate = default_learning_rate(size.hidden_size, lora=recipe.peft is not None)
        kind = "LoRA" if recipe.peft else "full training"
        yield Choice("training", "learning_rate", rate, f"{kind} of a model with hidden size {size.hidden_size}")


def _warmup_steps(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    if recipe.training.warmup_steps == "auto":
        shown = recipe.training.lr_scheduler_type != "constant"
        reason = "share of the steps in which the learning rate rises" if shown else ""
        yield Choice("training", "warmup_steps", WARMUP_SHARE, reason)


def _patience(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    """Stop early if the number of epochs was chosen and there is something to evaluate on."""
    if recipe.evaluation.early_stopping_patience != "auto":
        return
    strategy = filled.evaluation.eval_strategy
    patience, reason = None, ""
    if epochs_are_open(recipe) and not recipe.training.max_steps and size.has_validation and strategy != "no":
        steps, epochs = steps_per_epoch(filled, size.rows, size.processes), filled.training.num_train_epochs
        assert isinstance(epochs, int), "a rule before this one sets it"
        evaluations = math.ceil(steps * epochs / (filled.evaluation.eval_steps if strategy == "steps" else steps))
        patience = math.ceil(evaluations * PATIENCE_SHARE)
        reason = f"stop after {patience} of {evaluations} evaluations without a better one"
    yield Choice("evaluation", "early_stopping_patience", patience, reason)


def _tolerance(recipe: Recipe, filled: Recipe, size: RunSize) -> Iterator[Choice]:
    """Prefer later weights to earlier ones that the validation rows cannot tell apart, if the epochs were chosen."""
    if recipe.evaluation.best_model_tolerance != "auto":
        return
    tolerance, reason = 0.0, ""
    is_share = recipe.task.problem_type != "regression" and metric_bounds(recipe.best_metric()) is not None
    if epochs_are_open(recipe) and not recipe.training.max_steps and is_share and size.validation_rows:
        tolerance = round(ERROR_TIMES_ROOT_ROWS / math.sqrt(size.validation_rows), 4)
        reason = f"one standard error of {recipe.best_metric()} on {size.validation_rows:,} validation rows"
    yield Choice("evaluation", "best_model_tolerance", tolerance, reason)


# Each rule reads the recipe as it was given, and the settings that the rules before it have filled in.
_RULES: tuple[Rule, ...] = (
    _validation_size,
    _batch_size,
    _epochs,
    _intervals,
    _learning_rate,
    _warmup_steps,
    _patience,
    _tolerance,
)


def epochs_are_open(recipe: Recipe) -> bool:
    """Return whether the recipe leaves the number of epochs to be chosen."""
    return recipe.training.num_train_epochs in ("auto", None)


def steps_per_epoch(recipe: Recipe, rows: int, processes: int) -> int:
    """Return the number of optimizer steps in an epoch of `rows` rows; the recipe has a batch size."""
    training = recipe.training
    assert isinstance(training.per_device_train_batch_size, int), "fill_in sets a batch size that is left to auto"
    return steps_in_epoch(
        rows,
        batch_size=training.per_device_train_batch_size * processes,
        accumulation=training.gradient_accumulation_steps,
    )
