from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from finetune.recipe.schema import Recipe
from finetune.recipe.training_section import TrainingSection
from finetune.training.schedule import MAX_EVALUATIONS, MIN_EPOCHS, default_learning_rate, fill_in, make_plan
from tests.support.helpers import plan


@pytest.mark.parametrize("scheduler_type", ["linear", "cosine", "constant_with_warmup"])
def test_a_warmup_longer_than_the_run_gives_a_warning(scheduler_type: str) -> None:
    training = TrainingSection.model_validate({"lr_scheduler_type": scheduler_type, "learning_rate": 0.005})
    note = plan(total_steps=6, warmup_steps=500).warmup_note(training)
    assert "takes 500 steps, but the run has only 6: the learning rate ends at 6e-05 and never reaches 0.005" in note
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.005)
    scheduler = get_scheduler(scheduler_type, optimizer, 500, 6)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-5)


@pytest.mark.parametrize(("warmup", "scheduler_type"), [(0, "linear"), (6, "linear"), (500, "constant")])
def test_any_other_warmup_gives_no_warning(warmup: int, scheduler_type: str) -> None:
    training = TrainingSection.model_validate({"lr_scheduler_type": scheduler_type})
    assert plan(total_steps=6, warmup_steps=warmup).warmup_note(training) == ""


def minimal_recipe(**sections: dict[str, Any]) -> Recipe:
    rows: list[dict[str, object]] = [{"sentence": "a", "label": "x"}]
    return Recipe.model_validate(
        {"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": {"train_rows": rows}, **sections}
    )


@pytest.mark.parametrize(
    ("rows", "processes", "training", "expected"),
    [
        (100, 1, {"num_train_epochs": 3}, (7, 21, 2)),
        (100, 2, {"num_train_epochs": 3}, (4, 12, 1)),
        (100, 1, {"num_train_epochs": 3, "gradient_accumulation_steps": 3, "warmup_steps": 0.5}, (3, 9, 5)),
        (100, 1, {"max_steps": 5, "warmup_steps": 2.0}, (7, 5, 2)),
        (100, 1, {"max_steps": 5, "num_train_epochs": 3}, (7, 5, 1)),
        (100, 1, {"max_steps": 500, "num_train_epochs": 3}, (7, 21, 2)),
        (100, 1, {"max_steps": 500}, (7, 500, 30)),  # not limited by the default number of epochs
        (100, 1, {}, (7, 301, 19)),
        (100, 2, {}, (4, 300, 18)),
        (1600, 1, {}, (100, 300, 18)),
        (6920, 1, {}, (433, 1299, 78)),
        (3, 1, {}, (1, 300, 18)),
    ],
)
def test_the_numbers_of_steps_in_a_plan(
    rows: int, processes: int, training: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    schedule = make_plan(minimal_recipe(training=training), rows=rows, processes=processes)
    assert (schedule.steps_per_epoch, schedule.total_steps, schedule.warmup_steps) == expected
    assert schedule.due(0, schedule.total_steps)
    assert not schedule.due(None, schedule.total_steps)
    assert schedule.due(3, 3)
    assert not schedule.due(3, 2)


@pytest.mark.parametrize(("labels", "steps"), [(1, 301), (30, 301), (77, 770)])
def test_many_labels_need_more_steps(labels: int, steps: int) -> None:
    assert make_plan(minimal_recipe(), rows=100, processes=1, labels=labels).total_steps == steps
    fixed_epochs = minimal_recipe(training={"num_train_epochs": 3})
    assert make_plan(fixed_epochs, rows=100, processes=1, labels=labels).total_steps == 21


@pytest.mark.parametrize(
    ("width", "lora", "rate"),
    [(384, False, 1e-4), (768, False, 5e-5), (1024, False, 4e-5), (384, True, 1e-3), (768, True, 5e-4)],
)
def test_the_default_learning_rate_depends_on_the_width(width: int, lora: bool, rate: float) -> None:
    assert default_learning_rate(width, lora=lora) == rate


@pytest.mark.parametrize("rows", [3, 100, 1600, 6920])
@pytest.mark.parametrize("peft", [None, {"r": 8}], ids=["full", "lora"])
def test_missing_settings_are_filled_in_and_give_the_same_plan(rows: int, peft: dict[str, int] | None) -> None:
    recipe = minimal_recipe(**({"peft": peft} if peft else {}))
    schedule = make_plan(recipe, rows=rows, processes=1)
    filled, note = fill_in(recipe, schedule, 384)
    assert make_plan(filled, rows=rows, processes=1) == schedule
    assert filled.training.learning_rate == (1e-3 if peft else 1e-4)
    assert note == (
        f"Not set in the recipe, so chosen: {schedule.epochs} epochs ({schedule.total_steps} steps of up to 16 rows), "
        f"learning rate {filled.training.learning_rate:g} ({'LoRA' if peft else 'full training'} at width 384)."
    )
    evaluations = [step for step in range(1, schedule.total_steps + 1) if schedule.due(schedule.eval_every, step)]
    assert MIN_EPOCHS <= len(evaluations) <= MAX_EVALUATIONS
    assert schedule.save_every == schedule.eval_every
    assert fill_in(filled, schedule, 768) == (filled, "")


def test_given_settings_are_kept() -> None:
    recipe = minimal_recipe(
        training={"num_train_epochs": 20, "learning_rate": 2e-5}, checkpoint={"save_strategy": "no"}
    )
    filled, note = fill_in(recipe, make_plan(recipe, rows=100, processes=1), 384)
    assert (note, filled.training, filled.checkpoint) == ("", recipe.training, recipe.checkpoint)
    assert filled.evaluation.eval_strategy == "epoch"
    steps = minimal_recipe(evaluation={"eval_strategy": "steps", "eval_steps": 7})
    assert make_plan(steps, rows=100, processes=1).eval_every == 7


@pytest.mark.parametrize("max_steps", [2, 50, 500])
def test_max_steps_alone_gives_the_same_plan_after_filling_in(max_steps: int) -> None:
    recipe = minimal_recipe(training={"max_steps": max_steps})
    schedule = make_plan(recipe, rows=100, processes=1)
    filled, _ = fill_in(recipe, schedule, 384)
    assert make_plan(filled, rows=100, processes=1) == schedule
    assert schedule.total_steps == max_steps


def test_eval_steps_and_save_steps_imply_their_strategy() -> None:
    recipe = minimal_recipe(evaluation={"eval_steps": 7}, checkpoint={"save_steps": 9})
    schedule = make_plan(recipe, rows=100, processes=1)
    assert (schedule.eval_every, schedule.save_every) == (7, 9)
    by_epoch = minimal_recipe(evaluation={"eval_steps": 7, "eval_strategy": "epoch"}, training={"num_train_epochs": 2})
    assert make_plan(by_epoch, rows=100, processes=1).eval_every == 0
