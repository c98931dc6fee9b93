"""The numbers that stand for `auto`: finetune/training/auto_settings.py."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.recipe.schema import Recipe
from finetune.training.auto_settings import (
    BATCH_SIZE,
    MAX_EVALUATIONS,
    MIN_CONTRASTIVE_BATCH,
    MIN_EPOCHS,
    MIN_STEPS,
    MIN_STEPS_PER_EPOCH,
    MIN_STEPS_PER_LABEL,
    PATIENCE_SHARE,
    WARMUP_SHARE,
    Choice,
    RunSize,
    default_learning_rate,
    describe_choices,
    fill_in,
)
from finetune.training.schedule import Plan, make_plan
from tests.support.recipes import minimal_recipe


def size(rows: int, labels: int = 2, hidden_size: int | None = 384, **changes: Any) -> RunSize:
    return RunSize(rows, labels, hidden_size, **{"has_validation": True, **changes})


def filled(rows: int = 100, labels: int = 2, processes: int = 1, **sections: dict[str, Any]) -> tuple[Recipe, Plan]:
    """Return the recipe with every `auto` replaced, and its plan."""
    recipe, _ = fill_in(minimal_recipe(**sections), size(rows, labels, processes=processes))
    return recipe, make_plan(recipe, rows=rows, processes=processes)


@pytest.mark.parametrize("training", [{}, {"num_train_epochs": None, "learning_rate": None}], ids=["auto", "null"])
@pytest.mark.parametrize(
    ("rows", "processes", "labels"),
    [(3, 1, 2), (100, 1, 2), (100, 2, 2), (100, 1, 30), (100, 1, 77), (1600, 1, 2), (6920, 1, 2)],
)
def test_there_are_enough_steps_and_epochs(rows: int, processes: int, labels: int, training: dict[str, Any]) -> None:
    _, plan = filled(rows, labels, processes, training=training)
    needed = max(MIN_STEPS, MIN_STEPS_PER_LABEL * labels, MIN_EPOCHS * plan.steps_per_epoch)
    assert needed <= plan.total_steps < needed + plan.steps_per_epoch


def test_few_validation_rows_do_not_choose_between_similar_scores() -> None:
    def tolerance(validation_rows: int, **sections: dict[str, Any]) -> object:
        recipe, _ = fill_in(minimal_recipe(**sections), size(100, validation_rows=validation_rows))
        return recipe.evaluation.best_model_tolerance

    assert tolerance(40) == pytest.approx(0.4 / 40**0.5, abs=1e-4)
    assert tolerance(872) < 0.014
    assert tolerance(40, training={"num_train_epochs": 3}) == 0
    assert tolerance(40, training={"max_steps": 300}) == 0
    assert tolerance(40, evaluation={"metric_for_best_model": "loss"}) == 0
    assert tolerance(40, task={"problem_type": "regression"}) == 0
    assert tolerance(40, evaluation={"best_model_tolerance": 0.01}) == 0.01


def test_many_labels_need_more_steps_only_from_a_random_head() -> None:
    steps = [
        fill_in(minimal_recipe(), size(100, 77, starts_from_probe=probe))[0].training.num_train_epochs * 7
        for probe in (False, True)
    ]
    assert steps[0] >= 77 * MIN_STEPS_PER_LABEL > steps[1] >= MIN_STEPS


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_steps": 5}, 5),
        ({"max_steps": 500}, 500),
        ({"num_train_epochs": 3}, 21),
        ({"num_train_epochs": 3, "max_steps": 500}, 21),
    ],
)
def test_given_epochs_and_steps_are_kept(training: dict[str, Any], steps: int) -> None:
    for labels in (2, 77):
        assert filled(100, labels, training=training)[1].total_steps == steps


@pytest.mark.parametrize(
    ("rows", "processes", "accumulation", "expected"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (4, 1, 1, 2), (16, 1, 1, 8), (17, 1, 1, 16), (5000, 1, 1, 16), (40, 2, 2, 8)],
)
def test_few_rows_get_smaller_batches(rows: int, processes: int, accumulation: int, expected: int) -> None:
    recipe, plan = filled(rows, processes=processes, training={"gradient_accumulation_steps": accumulation})
    assert recipe.training.per_device_train_batch_size == expected <= BATCH_SIZE
    assert plan.batch_size == expected * processes
    assert plan.steps_per_epoch >= MIN_STEPS_PER_EPOCH or expected == 1
    compared, _ = filled(rows, training={"contrastive_weight": 0.1})
    assert int(compared.training.per_device_train_batch_size) >= MIN_CONTRASTIVE_BATCH
    given, _ = filled(rows, training={"per_device_train_batch_size": 7})
    assert given.training.per_device_train_batch_size == 7


@pytest.mark.parametrize(
    ("width", "lora", "rate"),
    [(384, False, 1e-4), (768, False, 5e-5), (1024, False, 4e-5), (384, True, 1e-3), (768, True, 5e-4)],
)
def test_the_learning_rate_depends_on_the_width(width: int, lora: bool, rate: float) -> None:
    assert default_learning_rate(width, lora=lora) == rate
    recipe, choices = fill_in(minimal_recipe(**({"peft": {}} if lora else {})), size(100, hidden_size=width))
    assert recipe.training.learning_rate == rate
    (line,) = [line for line in describe_choices(choices) if "learning_rate" in line]
    assert line.endswith(f"{'LoRA' if lora else 'full training'} of a model with hidden size {width}")


def test_no_learning_rate_is_chosen_for_a_model_of_unknown_width() -> None:
    recipe, choices = fill_in(minimal_recipe(), size(100, hidden_size=None))
    assert recipe.training.learning_rate == "auto"
    assert "learning_rate" not in [choice.key for choice in choices]


@pytest.mark.parametrize("rows", [3, 100, 1600, 6920])
def test_evaluations_are_limited_if_the_number_of_epochs_is_chosen(rows: int) -> None:
    recipe, plan = filled(rows)
    evaluations = [step for step in range(1, plan.total_steps + 1) if plan.due(plan.eval_every, step)]
    assert MIN_EPOCHS <= len(evaluations) <= MAX_EVALUATIONS
    assert plan.save_every == plan.eval_every
    assert plan.patience == -(-len(evaluations) // (1 / PATIENCE_SHARE))
    assert recipe.evaluation.early_stopping_patience == plan.patience


@pytest.mark.parametrize(
    ("sections", "validation", "patience"),
    [
        ({"evaluation": {"eval_strategy": "steps", "eval_steps": 3}}, True, 51),  # 101 evaluations
        ({"evaluation": {"eval_strategy": "epoch"}}, True, 22),  # 43 evaluations
        ({"evaluation": {"early_stopping_patience": 3}}, True, 3),
        ({"evaluation": {"early_stopping_patience": 3}, "training": {"num_train_epochs": 9}}, True, 3),
        ({"evaluation": {"early_stopping_patience": None}}, True, None),
        ({"training": {"num_train_epochs": 9}}, True, None),
        ({"training": {"max_steps": 900}}, True, None),
        ({"evaluation": {"eval_strategy": "no"}}, True, None),
        ({}, False, None),
    ],
)
def test_early_stopping_needs_a_chosen_number_of_epochs_and_evaluations(
    sections: dict[str, dict[str, Any]], validation: bool, patience: int | None
) -> None:
    recipe, _ = fill_in(minimal_recipe(**sections), size(100, has_validation=validation))
    assert recipe.evaluation.early_stopping_patience == patience


@pytest.mark.parametrize(("given", "expected"), [("auto", 0.2), (None, None), (0.3, 0.3)])
def test_the_share_that_was_held_out_is_written_down(given: object, expected: float | None) -> None:
    recipe, _ = fill_in(minimal_recipe(data={"validation_size": given}), size(80, held_out=0.2))
    assert recipe.data.validation_size == expected


@pytest.mark.parametrize(
    "sections",
    [{}, {"peft": {"r": 8}}, {"training": {"max_steps": 50}}, {"evaluation": {"eval_steps": 7}}],
    ids=["nothing", "lora", "max_steps", "eval_steps"],
)
@pytest.mark.parametrize("rows", [3, 100, 6920])
def test_the_result_has_no_auto_and_is_kept(rows: int, sections: dict[str, Any]) -> None:
    recipe, plan = filled(rows, **sections)
    chosen = {(choice.section, choice.key) for choice in fill_in(minimal_recipe(), size(rows))[1]}
    assert len(chosen) >= 6
    assert [key for section, key in chosen if getattr(getattr(recipe, section), key) == "auto"] == []
    other_model_and_rows = size(7, 50, 768, has_validation=False, held_out=0.1)
    assert fill_in(recipe, other_model_and_rows) == (recipe, [])
    assert make_plan(recipe, rows=rows, processes=1) == plan


def test_numbers_of_the_recipe_are_kept() -> None:
    training = {"num_train_epochs": 20, "learning_rate": 2e-5, "warmup_steps": 7.0, "per_device_train_batch_size": 3}
    given = minimal_recipe(training=training, checkpoint={"save_strategy": "no"}, evaluation={"eval_steps": 7})
    recipe, choices = fill_in(given, size(100))
    assert (recipe.training, recipe.checkpoint) == (given.training, given.checkpoint)
    assert (recipe.evaluation.eval_strategy, recipe.evaluation.eval_steps) == ("steps", 7)
    assert describe_choices(choices) == []


def test_every_number_has_a_reason() -> None:
    _, choices = fill_in(minimal_recipe(), size(160, held_out=0.2))
    assert describe_choices(choices) == [
        "Settings that the recipe leaves to auto:",
        "  validation_size              0.2     share of the training rows, held out as no validation rows are given",
        f"  per_device_train_batch_size  {BATCH_SIZE}      10 steps per epoch",
        f"  num_train_epochs             {-(-MIN_STEPS // 10):<6}  at least {MIN_STEPS} steps, as a model learns "
        "little in fewer",
        "  learning_rate                0.0001  full training of a model with hidden size 384",
        f"  warmup_steps                 {WARMUP_SHARE:<6}  share of the steps in which the learning rate rises",
        "  early_stopping_patience      5       stop after 5 of 10 evaluations without a better one",
    ]
    reasons = {
        (6920, 2): f"{MIN_EPOCHS * 433:,} steps, at least {MIN_EPOCHS} epochs",
        (100, 77): f"at least {77 * MIN_STEPS_PER_LABEL} steps, {MIN_STEPS_PER_LABEL} for each of 77 labels",
    }
    for (rows, labels), reason in reasons.items():
        _, choices = fill_in(minimal_recipe(), size(rows, labels))
        assert reason in [choice.reason for choice in choices if choice.key == "num_train_epochs"]
    _, choices = fill_in(minimal_recipe(training={"max_steps": 1500, "lr_scheduler_type": "constant"}), size(4))
    text = "\n".join(describe_choices(choices))
    assert "enough for max_steps: 1,500" in text
    assert "2 steps per epoch; smaller than usual, as there are few rows" in text
    assert "warmup_steps" not in text
    assert describe_choices([Choice("data", "validation_size", None)]) == []
