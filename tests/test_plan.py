from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from finetune.recipe import TrainingSection
from tests.helpers import plan


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
def test_a_warm_up_longer_than_the_run_is_reported(kind: str) -> None:
    training = TrainingSection.model_validate({"lr_scheduler_type": kind, "learning_rate": 0.005})
    note = plan(total_steps=6, warmup_steps=500).warmup_note(training)
    assert "takes 500 steps, but the run has only 6: the learning rate ends at 6e-05 and never reaches 0.005" in note
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.005)
    scheduler = get_scheduler(kind, optimizer, 500, 6)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-5)


@pytest.mark.parametrize(("warmup", "kind"), [(0, "linear"), (6, "linear"), (500, "constant")])
def test_any_other_warm_up_is_not(warmup: int, kind: str) -> None:
    training = TrainingSection.model_validate({"lr_scheduler_type": kind})
    assert plan(total_steps=6, warmup_steps=warmup).warmup_note(training) == ""
