"""Layers that are computed again in the backward pass: finetune/models/gradient_checkpointing.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from finetune.errors import ModelError
from finetune.models.activation_cache import CacheSettings, cached_frozen_layers
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing, freeze
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from tests.support.families import build, save_checkpoint, train_three_steps
from tests.support.helpers import encoded, plan, tiny_classifier
from tests.support.training import LORA


def gradients(classifier: Classifier, accelerator: Accelerator, split: Any = None, **options: bool) -> dict[str, Any]:
    """Return the gradients of one step, and how often layers were computed."""
    training = TrainingSection(learning_rate=1e-2, **options)
    split = split or encoded(classifier)
    trainer = build_trainer(classifier, split, plan(batch_size=6), Hyperparameters(training, seed=0), accelerator)
    ((batch,), _), calls = next(trainer.epoch_steps()), []
    handles = [layer.attention.register_forward_hook(lambda *_: calls.append(1)) for layer in layers_of(classifier)]
    stepper = trainer.stepper
    stepper.model.module.train()
    torch.manual_seed(3)
    stepper.objective.losses(stepper.model, batch).sum().backward()
    for handle in handles:
        handle.remove()
    assert not any("gradient_checkpointing" in vars(layer) for layer in layers_of(classifier))
    return {"calls": len(calls)} | {str(number): p.grad for number, p in enumerate(stepper.parameters)}


def layers_of(classifier: Classifier) -> list[Any]:
    return list(classifier.base.bert.encoder.layer)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("freezing", [Freezing(), Freezing(embeddings=True, layers=1)], ids=["all", "frozen layers"])
def test_the_gradients_are_the_same_bits_with_dropout(
    tiny_bert: Path, accelerator: Accelerator, lora: Lora | None, freezing: Freezing
) -> None:
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        classifier = tiny_classifier(tiny_bert, lora=lora)
        if lora is None:
            freeze(classifier.base, freezing)
        results.append(gradients(classifier, accelerator, gradient_checkpointing=checkpointed))
    plain, again = results
    assert (plain.pop("calls"), again.pop("calls")) == (2, 4 if lora or not freezing.layers else 3)
    assert len(plain) > 8
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_cache_of_frozen_layers_can_be_used_too(tiny_bert: Path, accelerator: Accelerator) -> None:
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        classifier = tiny_classifier(tiny_bert)
        freeze(classifier.base, Freezing(embeddings=True, layers=1))
        with cached_frozen_layers(
            classifier,
            {"train": encoded(classifier)},
            CacheSettings(1, 4),
            accelerator=accelerator,
            notify=lambda text: None,
        ) as splits:
            results.append(gradients(classifier, accelerator, splits["train"], gradient_checkpointing=checkpointed))
    plain, again = results
    assert (plain.pop("calls"), again.pop("calls")) == (1, 2)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("family", ["albert", "xlm", "squeezebert", "multi_head_classifier"])
def test_families_without_support_are_rejected(family: str, tmp_path: Path, accelerator: Accelerator) -> None:
    classifier = build(save_checkpoint(family, tmp_path))
    message = rf"gradient_checkpointing is true, but transformers does not support it for the layers of a '{family}' mo"
    with pytest.raises(ModelError, match=message):
        train_three_steps(classifier, accelerator, gradient_checkpointing=True)
