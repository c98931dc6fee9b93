from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from finetune.recipe.training_section import TrainingSection
from finetune.training.schedule import make_plan
from tests.support.helpers import plan
from tests.support.recipes import minimal_recipe


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


@pytest.mark.parametrize(
    ("rows", "processes", "training", "expected"),
    [
        (100, 1, {"num_train_epochs": 3}, (7, 21, 2)),
        (100, 2, {"num_train_epochs": 3}, (4, 12, 1)),
        (100, 1, {"num_train_epochs": 3, "gradient_accumulation_steps": 3, "warmup_steps": 0.5}, (3, 9, 5)),
        (100, 1, {"num_train_epochs": 3, "max_steps": 5, "warmup_steps": 2.0}, (7, 5, 2)),
        (100, 1, {"num_train_epochs": 3, "max_steps": 5}, (7, 5, 1)),
        (100, 1, {"num_train_epochs": 3, "max_steps": 500}, (7, 21, 2)),
        (3, 1, {"num_train_epochs": 300}, (1, 300, 18)),
    ],
)
def test_the_numbers_of_steps_in_a_plan(
    rows: int, processes: int, training: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    training = {"per_device_train_batch_size": 16, "warmup_steps": 0.06, **training}
    recipe = minimal_recipe(training=training, evaluation={"early_stopping_patience": None})
    schedule = make_plan(recipe, rows=rows, processes=processes)
    assert (schedule.steps_per_epoch, schedule.total_steps, schedule.warmup_steps) == expected
    assert schedule.due(0, schedule.total_steps)
    assert not schedule.due(None, schedule.total_steps)
    assert schedule.due(3, 3)
    assert not schedule.due(3, 2)


def test_eval_steps_and_save_steps_imply_their_strategy() -> None:
    training = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "warmup_steps": 0}
    evaluation = {"eval_steps": 7, "early_stopping_patience": 4}
    recipe = minimal_recipe(evaluation=evaluation, checkpoint={"save_steps": 9}, training=training)
    schedule = make_plan(recipe, rows=100, processes=1)
    assert (schedule.eval_every, schedule.save_every, schedule.patience) == (7, 9, 4)
    by_epoch = minimal_recipe(evaluation={**evaluation, "eval_strategy": "epoch"}, training=training)
    assert make_plan(by_epoch, rows=100, processes=1).eval_every == 0
