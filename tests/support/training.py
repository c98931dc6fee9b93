"""Training runs on six sentences, shared by the tests of the training package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan
from finetune.training.trainer import Evaluation, Trainer
from tests.support.helpers import ROLES, encoded

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.1, roles=ROLES)


def train_on_sentences(
    classifier: Classifier,
    accelerator: Accelerator,
    folder: Path,
    schedule: Plan,
    *,
    evaluations: list[float] | list[dict[str, float | None]] | None = None,
    best_metric: str = "loss",
    resume: Path | None = None,
    stop_after: int | None = None,
    **changes: Any,
) -> tuple[Trainer, str, list[dict[str, Any]]]:
    """Train on the six sentences and return trainer, stop reason and history; `evaluations` are their fixed results."""
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant").model_copy(
        update=changes
    )
    trainer = build_trainer(classifier, encoded(classifier), schedule, Hyperparameters(training, seed=5), accelerator)
    if resume is not None:
        trainer.resume(resume)
    entries: list[dict[str, Any]] = []
    results = iter(evaluations or [])

    def evaluate() -> dict[str, float | None]:
        values = next(results)
        return values if isinstance(values, dict) else {"loss": values}

    def log(entry: dict[str, Any]) -> None:
        entries.append(entry)
        if stop_after is not None and entry["step"] > stop_after:
            raise InterruptedError

    reason = trainer.fit(folder, evaluation=Evaluation(evaluate, best_metric) if evaluations else None, log=log)
    return trainer, reason, entries


def without_dropout(classifier: Classifier) -> Classifier:
    """Return the classifier with all dropout probabilities set to 0."""
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in classifier.base.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    return classifier


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two models' weights."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
