"""Training and scoring use the speedups, and the model is restored afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from finetune.evaluation.prediction import predict
from finetune.models import cpu_kernels
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.trainer import Evaluation
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, encoded, plan, tiny_classifier


@pytest.fixture(params=[None, Lora(r=2, lora_alpha=4, lora_dropout=0.1, roles=ROLES)], ids=["full", "lora"])
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    return tiny_classifier(tiny_bert, lora=request.param)


def watch(classifier: Classifier) -> list[int]:
    """Return a list that records the number of tokens after the last layer's attention, per forward pass."""
    sizes: list[int] = []
    last = classifier.base.base_model.encoder.layer[-1].intermediate
    last.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    return sizes


def hooks(classifier: Classifier) -> int:
    return sum(len(module._forward_pre_hooks) for module in classifier.model.modules())


def test_training_and_evaluation_use_the_speedups(
    classifier: Classifier, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, sizes, mask_shapes = encoded(classifier), watch(classifier), []
    keep_mask = cpu_kernels._keep_mask
    monkeypatch.setattr(
        cpu_kernels, "_keep_mask", lambda values, steps: mask_shapes.append(values.shape) or keep_mask(values, steps)
    )
    before = hooks(classifier)
    trainer = build_trainer(
        classifier, split, plan(), Hyperparameters(TrainingSection(learning_rate=2e-5), seed=0), accelerator
    )

    def evaluate() -> dict[str, float]:
        masks = len(mask_shapes)
        loss = predict(classifier, split, batch_size=4, accelerator=accelerator).metrics()["loss"]
        assert len(mask_shapes) == masks  # no dropout in evaluations
        return {"loss": loss}

    trainer.fit(tmp_path, evaluation=Evaluation(evaluate))
    assert sizes[2:] == [1] * (6 + 2 * 2)  # 6 steps, 2 evaluations of 2 batches; the first 2 passes test it
    # Dropout per step: after embeddings and pooler, three times per layer, and on the inputs of adapters.
    assert len(mask_shapes) == 6 * (2 + 2 * 3 + (2 * 4 if hasattr(classifier.model, "peft_config") else 0))
    assert hooks(classifier) == before


def test_scores_equal_those_of_the_full_model(classifier: Classifier, accelerator: Accelerator) -> None:
    split, sizes = encoded(classifier), watch(classifier)
    logits = predict(classifier, split, batch_size=4, accelerator=accelerator).logits
    assert sizes[2:] == [1, 1]
    classifier.model.eval()
    with torch.no_grad():
        for index, ids in enumerate(split.rows["input_ids"]):
            single_row = classifier.model(input_ids=torch.tensor([ids])).logits[0]
            assert_equal_up_to_rounding(logits[index], single_row)
