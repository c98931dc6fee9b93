"""The computations that the fast ablation saves, and when a saving is not used."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.heads.ablation import (
    FIRST_TOKEN,
    PREFIX,
    SHARED_ATTENTION,
    ablation,
    fitting_savings,
    naive_logits_without,
)
from finetune.heads.fast_ablation import logits_without, prefix_reuse
from finetune.models.speedups import first_token_only
from tests.models.test_head_gates import bert, bert_lora
from tests.support.helpers import (
    assert_equal_up_to_rounding,
    sample_of,
)

NONE: frozenset[str] = frozenset()
SHARED, ALL = frozenset({PREFIX, SHARED_ATTENTION}), frozenset({PREFIX, SHARED_ATTENTION, FIRST_TOKEN})


def test_lower_layers_are_not_computed_again(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    layers, calls = classifier.base.bert.encoder.layer, []
    inputs = {"input_ids": torch.tensor([[2, 3, 4, 5], [2, 3, 4, 5]])}
    reuse = prefix_reuse(classifier.base.eval(), sample_of(classifier).sites, shared_attention=True)
    handles = [
        layer.output.register_forward_pre_hook(
            lambda module, args, number=number: calls.append((number, args[0].shape))
        )
        for number, layer in enumerate(layers)
    ]
    with first_token_only(classifier.base):
        calls.clear()
        logits_without(reuse, inputs)
    for handle in handles:
        handle.remove()
    assert calls == [
        (0, (2, 4, 32)),
        (1, (2, 1, 32)),  # the full model; in the last layer only the first token
        (0, (3, 2, 4, 32)),  # without each head of layer 0; its attention was computed once, for two rows
        (1, (6, 1, 32)),  # layer 1, on one copy of the rows per head
        (1, (3, 2, 1, 32)),  # without each head of layer 1: layer 0 is not called
    ]


@pytest.mark.parametrize("shared_attention", [False, True], ids=["attention per head", "shared attention"])
@pytest.mark.parametrize("first_token", [False, True], ids=["all tokens", "first token"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [1, 10**6], ids=["one head at a time", "all heads at once"])
def test_each_saving_alone(
    tiny_bert: Path,
    shared_attention: bool,
    first_token: bool,
    implementation: str,
    max_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = bert_lora(tiny_bert)
    classifier.base.set_attn_implementation(implementation)
    base, sites = classifier.base.eval(), sample_of(classifier).sites
    inputs = classifier.tokenizer(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt").data
    monkeypatch.setattr("finetune.heads.fast_ablation._TOKENS", max_tokens)
    reuse = prefix_reuse(base, sites, shared_attention=shared_attention)
    expected_full, expected_without = naive_logits_without(base, sites, inputs)
    with first_token_only(base) if first_token else nullcontext(False) as cut:
        full, without = logits_without(reuse, inputs)
        assert fitting_savings(base, sites, inputs) == SHARED
    assert cut == first_token
    assert_equal_up_to_rounding(full.detach(), expected_full)
    assert_equal_up_to_rounding(torch.stack(without), torch.stack(expected_without))


def test_a_saving_that_changes_the_result_is_not_used(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    classifier.base.bert.pooler.forward = lambda states: torch.tanh(states[:, :2].mean(1))  # reads two positions
    sample = sample_of(classifier, batch_size=4)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    assert fast.savings == SHARED
    assert_equal_up_to_rounding(fast.without, naive.without)


@pytest.mark.parametrize(("rounding", "savings"), [(3e-5, SHARED), (1e-3, NONE)])
def test_only_differences_above_rounding_disable_the_savings(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, rounding: float, savings: frozenset[str]
) -> None:
    classifier = bert(tiny_bert)
    inputs = classifier.tokenizer(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt").data

    def rounded(*arguments: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        full, without = logits_without(*arguments)
        return full + rounding * full.abs().max(), without

    monkeypatch.setattr("finetune.heads.ablation.logits_without", rounded)
    assert fitting_savings(classifier.base.eval(), sample_of(classifier).sites, inputs) == savings
