from __future__ import annotations

from collections.abc import Callable

import pytest
from accelerate import Accelerator

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.optimizer import build_optimizer
from tests.support.helpers import encoded, plan
from tests.support.training import LORA


def test_biases_and_norms_have_no_weight_decay(build: Callable[..., Classifier]) -> None:
    model = build().model
    decayed, not_decayed = build_optimizer(
        dict(model.named_parameters()), TrainingSection(learning_rate=2e-5, weight_decay=0.1)
    ).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.1, 0.0)
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in not_decayed["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(names)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_rates_fall_from_layer_to_layer(
    build: Callable[..., Classifier], accelerator: Accelerator, lora: Lora | None
) -> None:
    classifier = build(lora)
    training = TrainingSection(
        learning_rate=0.8, weight_decay=0.5, lr_scheduler_type="constant", layerwise_lr_decay=0.5
    )
    hyperparameters = Hyperparameters(training, seed=0, loraplus_lr_ratio=3.0 if lora else None)
    trainer = build_trainer(classifier, encoded(classifier), plan(), hyperparameters, accelerator)
    stepper, names = trainer.stepper, {id(p): name for name, p in classifier.model.named_parameters()}
    if stepper.model.embeddings is not None:
        names[id(stepper.model.embeddings.rows)] = "bert.embeddings.word_embeddings.weight"
    rates = {names[id(p)]: group["lr"] for group in stepper.optimizer.param_groups for p in group["params"]}
    depths = {"embeddings.": 3, "layer.0.": 2, "layer.1.": 1, "pooler": 0, "classifier": 0}
    for name, rate in rates.items():
        (depth,) = [depth for part, depth in depths.items() if part in name]
        assert rate == pytest.approx(0.8 * 0.5**depth * (3 if "lora_B" in name else 1)), name
    assert len(rates) == len(stepper.parameters) == sum(p.requires_grad for p in classifier.model.parameters())
    assert trainer.stepper.scheduler.get_last_lr()[0] == 0.8  # the logged rate
    micro_batches, rows = next(trainer.epoch_steps())
    trainer.optimizer_step(micro_batches, rows)
    assert trainer.state.weight_decay_factor == (1.0 if lora else 1 - 0.8 * 0.5**3 * 0.5)  # the embeddings' own rate
