"""The schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import get_scheduler

from finetune.recipe.training_section import TrainingSection
from finetune.training.schedule import Plan

# Share of all steps in which `warmup_stable_decay` decays (Hägele et al. 2024, section 4.1: 10 to 20 % are enough).
DECAY_SHARE = 0.2


def make_scheduler(
    optimizer: torch.optim.Optimizer, training: TrainingSection, plan: Plan
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the scheduler of the recipe, from transformers."""
    kwargs: dict[str, Any] = dict(training.lr_scheduler_kwargs)
    if training.lr_scheduler_type == "warmup_stable_decay":
        steps = kwargs.get("num_decay_steps", DECAY_SHARE)
        steps = int(steps) if steps >= 1 else math.ceil(steps * plan.total_steps)
        kwargs["num_decay_steps"] = min(steps, max(plan.total_steps - plan.warmup_steps, 1))
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        training.lr_scheduler_type, optimizer, plan.warmup_steps, plan.total_steps, kwargs
    )
    return scheduler
