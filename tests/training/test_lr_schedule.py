"""The schedules of the learning rate: finetune/training/lr_schedule.py and finetune/recipe/lr_schedules.py."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import optimization

from finetune.recipe.lr_schedules import SCHEDULES
from finetune.recipe.training_section import TrainingSection
from finetune.training.lr_schedule import make_scheduler
from tests.support.helpers import plan

RATE, WARMUP, STEPS = 0.5, 2, 12
# Parameters that the plan sets, or that cannot be set here: the warm-up is always linear, and stable is what remains.
NOT_HERE = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "num_stable_steps", "warmup_type"}


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


# Name, parameters, and the rate over the peak after the warm-up, from the share of the remaining steps that is done.
CASES: list[tuple[str, dict[str, Any], Callable[[float], float]]] = [
    ("linear", {}, lambda x: 1 - x),
    ("cosine", {}, cosine),
    ("cosine", {"num_cycles": 1.5}, lambda x: cosine(3 * x)),
    ("cosine_with_restarts", {"num_cycles": 2}, lambda x: cosine(2 * x % 1)),
    ("polynomial", {"power": 2, "lr_end": 0.1}, lambda x: 0.2 + 0.8 * (1 - x) ** 2),
    ("constant_with_warmup", {}, lambda x: 1.0),
    ("inverse_sqrt", {}, lambda x: math.sqrt(WARMUP / (WARMUP + 10 * x))),
    ("inverse_sqrt", {"timescale": 5}, lambda x: math.sqrt(5 / (5 + 10 * x))),
    ("cosine_with_min_lr", {"min_lr": 0.1}, lambda x: 0.2 + 0.8 * cosine(x)),
    ("cosine_with_min_lr", {"min_lr_rate": 0.5}, lambda x: 0.5 + 0.5 * cosine(x)),
    ("warmup_stable_decay", {"num_decay_steps": 5}, lambda x: cosine(max(0.0, 2 * x - 1))),
    ("warmup_stable_decay", {"num_decay_steps": 0.4}, lambda x: cosine(max(0.0, 2 * x - 1))),  # 4.8 steps, rounded up
    ("warmup_stable_decay", {"decay_type": "linear"}, lambda x: min(1.0, (1 - x) / 0.3)),  # 2.4 steps: 3 of 10
]


def rates(name: str, kwargs: dict[str, Any], *, total_steps: int = STEPS, warmup_steps: int = WARMUP) -> list[float]:
    """Return the learning rate of each step."""
    training = TrainingSection.model_validate(
        {"learning_rate": RATE, "lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = plan(total_steps=total_steps, warmup_steps=warmup_steps)
    scheduler = make_scheduler(optimizer, training, schedule)
    values = []
    for _ in range(total_steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(("name", "kwargs", "expected"), CASES)
def test_the_learning_rate_of_each_step(name: str, kwargs: dict[str, Any], expected: Callable[[float], float]) -> None:
    shares = [(step - WARMUP) / (STEPS - WARMUP) for step in range(WARMUP, STEPS)]
    assert rates(name, kwargs) == pytest.approx([0, RATE / 2, *(RATE * expected(share) for share in shares)])


def test_every_schedule_has_a_case_and_the_parameters_of_transformers() -> None:
    assert {name for name, *_ in CASES} | {"constant"} == SCHEDULES.keys()
    assert rates("constant", {}) == [RATE] * STEPS
    for name, parameters in SCHEDULES.items():
        function = optimization.TYPE_TO_SCHEDULER_FUNCTION[optimization.SchedulerType(name)]
        assert set(inspect.signature(function).parameters) - NOT_HERE == set(parameters), name


def test_a_decay_that_is_longer_than_the_run_is_shortened() -> None:
    assert rates("warmup_stable_decay", {"num_decay_steps": 50, "decay_type": "linear"}) == pytest.approx(
        [0, RATE / 2, *(RATE * (1 - step / 10) for step in range(10))]
    )
    assert rates("warmup_stable_decay", {}, total_steps=1, warmup_steps=0) == [RATE]
