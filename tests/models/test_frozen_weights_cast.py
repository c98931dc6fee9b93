"""Frozen weights are cast once for autocast: results are bit-identical."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.speedups import frozen_weights_cast
from tests.support.helpers import ROLES, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state()
    Accelerator(cpu=True)


def outcome(classifier: Classifier, accelerator: Accelerator) -> list[Tensor]:
    classifier.model.zero_grad()
    with accelerator.autocast():
        logits = classifier.model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]])).logits
    logits.float().square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in classifier.model.parameters() if p.grad is not None)]


def test_results_are_bit_identical_and_weights_are_restored(tiny_bert: Path, bf16: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert, lora=LORA)
    classifier.model.eval()
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    weights = {name: p.data for name, p in classifier.model.named_parameters()}
    expected = outcome(classifier, bf16)
    query = classifier.base.base_model.encoder.layer[0].attention.self.query
    with frozen_weights_cast(classifier.model, bf16):
        assert query.base_layer.weight.dtype == torch.bfloat16
        assert not query.cast_input_dtype_enabled
        trained = {p.dtype for p in classifier.model.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        assert classifier.base.base_model.embeddings.word_embeddings.weight.dtype == torch.float32
        result = outcome(classifier, bf16)
    assert len(result) == len(expected) > 16
    assert all(torch.equal(actual, reference) for actual, reference in zip(result, expected, strict=True))
    assert all(p.data.data_ptr() == weights[name].data_ptr() for name, p in classifier.model.named_parameters())
    assert query.cast_input_dtype_enabled


def test_weights_are_restored_after_an_error(tiny_bert: Path, bf16: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert, lora=LORA)
    with pytest.raises(InterruptedError), frozen_weights_cast(classifier.model, bf16):
        raise InterruptedError
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("use_dora", [False, True])
def test_nothing_is_cast_if_it_would_change_results(
    tiny_bert: Path, accelerator: Accelerator, bf16: Accelerator, use_dora: bool
) -> None:
    adapters = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES, use_dora=use_dora)
    classifier = tiny_classifier(tiny_bert, lora=adapters if use_dora else None)
    with frozen_weights_cast(classifier.model, bf16):  # DoRA, and a model without frozen weights
        assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
