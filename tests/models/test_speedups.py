"""Training and scoring use the speedups, and the model is restored afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from finetune.evaluation.prediction import predict
from finetune.models import cpu_kernels
from finetune.models.architectures import FAMILIES
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.losses import per_example_loss
from finetune.models.speedups import masks_without_reads
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.trainer import Evaluation
from tests.support.families import random_model
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


# Families whose code in transformers reads from the device in every forward pass, and what it reads.
READING = {
    "flaubert": "the longest row, in an assertion",
    "ibert": "whether activations are finite, in an assertion",
    "xlm": "the longest row, in an assertion",
    "xmod": "which rows have a language",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_backward_pass_read_nothing_from_the_device(family: str) -> None:
    # Tensors on the device "meta" have no numbers, so a read is an error.
    meta = torch.device("meta")
    model = random_model(family).train().to(meta)
    tokens = torch.ones(4, 8, dtype=torch.int64, device=meta)
    reads = pytest.raises((RuntimeError, NotImplementedError)) if family in READING else nullcontext()
    before = dict(ALL_MASK_ATTENTION_FUNCTIONS)
    with masks_without_reads(meta), reads:
        logits = model(input_ids=tokens, attention_mask=tokens).logits
        per_example_loss(logits, tokens[:, 0], "single_label_classification").sum().backward()
        assert all(parameter.grad is None or parameter.grad.is_meta for parameter in model.parameters())
    assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_are_the_same_with_a_mask_that_is_always_made(tiny_bert: Path, implementation: str) -> None:
    model = tiny_classifier(tiny_bert).base.eval()
    model.set_attn_implementation(implementation)
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 5, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    made: list[torch.Tensor | None] = []
    model.base_model.encoder.layer[0].attention.register_forward_pre_hook(
        lambda module, args, kwargs: made.append(args[1] if len(args) > 1 else kwargs["attention_mask"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        for rows in (slice(0, 1), slice(0, 2)):  # without padding, and with
            expected = model(input_ids=ids[rows], attention_mask=mask[rows]).logits
            with masks_without_reads(torch.device("cuda")):
                logits = model(input_ids=ids[rows], attention_mask=mask[rows]).logits
            assert_equal_up_to_rounding(logits, expected)
    assert [mask is None for mask in made] == [True, False, False, False]
