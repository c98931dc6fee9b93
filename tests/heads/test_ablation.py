"""Logits without each head: the fast way against a gated forward pass for each head, on every family."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from finetune.heads.ablation import (
    FIRST_TOKEN,
    MEASURES,
    PREFIX,
    SHARED_ATTENTION,
    Ablation,
    ablation,
    fitting_savings,
    naive_logits_without,
)
from finetune.heads.fast_ablation import logits_without, prefix_reuse
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.models.architectures import FAMILIES
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.speedups import first_token_only
from tests.models.test_head_gates import bert, bert_lora, small
from tests.support.families import NO_LORA, SHAPES, build, save_checkpoint, split_of
from tests.support.helpers import (
    FLOAT64,
    ROLES,
    assert_equal_up_to_rounding,
    encoded,
    in_float64,
    sample_of,
    tiny_classifier,
)

NONE: frozenset[str] = frozenset()
SHARED, ALL = frozenset({PREFIX, SHARED_ATTENTION}), frozenset({PREFIX, SHARED_ATTENTION, FIRST_TOKEN})
# Which savings fit which family; ALL for those not listed.
EXPECTED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("albert", "eurobert", "multi_head_classifier", "nomic_bert"), SHARED),
    "xmod": frozenset({PREFIX, FIRST_TOKEN}),  # its adapters index rows of the batch
    "ibert": frozenset({PREFIX, FIRST_TOKEN}),  # its projections return a pair
    **dict.fromkeys(("xlm", "flaubert"), NONE),  # a layer is not a module
    "squeezebert": NONE,  # the result of a layer is a dict
}


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")  # SqueezeBERT's, not to be merged
@pytest.mark.parametrize("lora", [None, Lora(4, 8, 0.0, ROLES)], ids=["full", "lora"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fast_equals_naive(family: str, lora: Lora | None, tmp_path: Path) -> None:
    if lora is not None and family in NO_LORA:
        pytest.skip(f"{family}: {NO_LORA[family]}")
    classifier = build(save_checkpoint(family, tmp_path), lora)
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:  # LoRA starts at zero, where it would have no effect
            nn.init.normal_(parameter, std=0.1)
    in_float64(classifier)
    # Nyströmformer fails on batches in which rows differ in length.
    split = split_of(classifier) if family == "nystromformer" else encoded(classifier, labels=[0, 1, 2, 3, 4, 0])
    sample = sample_of(classifier, 4, batch_size=4, split=split)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    assert naive.without.shape == (4, *SHAPES.get(family, (2, 3)), 5)
    assert naive.savings == NONE
    assert fast.savings == EXPECTED.get(family, ALL)
    assert_equal_up_to_rounding(fast.without, naive.without, FLOAT64)
    assert_equal_up_to_rounding(fast.full, naive.full, FLOAT64)
    effect = np.abs(naive.without - naive.full[:, None, None]).max((0, 3))
    assert (effect > 1e-4).all()  # each head does something, so that one taken for another would show


@pytest.fixture(params=[bert, bert_lora, small], ids=lambda build: build.__name__)
def sample(request: pytest.FixtureRequest, tiny_bert: Path) -> GatedRows:
    make: Callable[[Path], Classifier] = request.param
    return sample_of(make(tiny_bert), batch_size=4)


def test_naive_is_a_gate_of_zero_on_each_head(sample: GatedRows) -> None:
    found = ablation(sample, fast=False)
    np.testing.assert_array_equal(found.full, gated_logits(sample, sample.gates()).numpy())
    for layer in range(2):
        for head in range(3):
            gates = sample.gates()
            gates[layer, head] = 0
            np.testing.assert_array_equal(found.without[:, layer, head], gated_logits(sample, gates).numpy())


def test_layers_below_are_not_called_again(tiny_bert: Path) -> None:
    found = bert(tiny_bert)
    layers, seen = found.base.bert.encoder.layer, []
    inputs = {"input_ids": torch.tensor([[2, 3, 4, 5], [2, 3, 4, 5]])}
    reuse = prefix_reuse(found.base.eval(), sample_of(found).sites, shared_attention=True)
    handles = [
        layer.output.register_forward_pre_hook(lambda module, args, number=number: seen.append((number, args[0].shape)))
        for number, layer in enumerate(layers)
    ]
    with first_token_only(found.base):
        seen.clear()
        logits_without(reuse, inputs)
    for handle in handles:
        handle.remove()
    assert seen == [
        (0, (2, 4, 32)),
        (1, (2, 1, 32)),  # the full model; in the last layer only the first token
        (0, (3, 2, 4, 32)),  # without each head of layer 0, its attention having been computed for two rows
        (1, (6, 1, 32)),  # layer 1 on a copy per head
        (1, (3, 2, 1, 32)),  # without each head of layer 1: layer 0 is not called
    ]


@pytest.mark.parametrize("shared_attention", [False, True], ids=["attention per head", "shared attention"])
@pytest.mark.parametrize("first_token", [False, True], ids=["all tokens", "first token"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("most", [1, 10**6], ids=["a head at a time", "all heads at once"])
def test_each_saving_by_itself(
    tiny_bert: Path,
    shared_attention: bool,
    first_token: bool,
    implementation: str,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = bert_lora(tiny_bert)
    found.base.set_attn_implementation(implementation)
    base, sites = found.base.eval(), sample_of(found).sites
    inputs = found.tokenizer(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt").data
    monkeypatch.setattr("finetune.heads.fast_ablation._TOKENS", most)
    reuse = prefix_reuse(base, sites, shared_attention=shared_attention)
    expected_full, expected_without = naive_logits_without(base, sites, inputs)
    with first_token_only(base) if first_token else nullcontext(False) as cut:
        full, without = logits_without(reuse, inputs)
        assert fitting_savings(base, sites, inputs) == SHARED
    assert cut == first_token
    assert_equal_up_to_rounding(full.detach(), expected_full)
    assert_equal_up_to_rounding(torch.stack(without), torch.stack(expected_without))


def test_a_saving_that_would_be_wrong_is_not_taken(tiny_bert: Path) -> None:
    found = bert(tiny_bert)
    found.base.bert.pooler.forward = lambda states: torch.tanh(states[:, :2].mean(1))  # reads two positions
    sample = sample_of(found, batch_size=4)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    assert fast.savings == SHARED
    assert_equal_up_to_rounding(fast.without, naive.without)


@pytest.mark.parametrize(("rounding", "savings"), [(3e-5, SHARED), (1e-3, NONE)])
def test_rounding_is_no_reason_to_go_the_slow_way(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, rounding: float, savings: frozenset[str]
) -> None:
    found = bert(tiny_bert)
    inputs = found.tokenizer(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt").data

    def rounded(*arguments: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        full, without = logits_without(*arguments)
        return full + rounding * full.abs().max(), without

    monkeypatch.setattr("finetune.heads.ablation.logits_without", rounded)
    assert fitting_savings(found.base.eval(), sample_of(found).sites, inputs) == savings


def cut_out(classifier: Classifier, lost: dict[int, list[int]]) -> None:
    """Cut heads out of a BERT by slicing its projections."""
    sites = sample_of(classifier).sites
    for layer, heads in lost.items():
        site, inner = sites[layer], classifier.base.bert.encoder.layer[layer].attention.self
        kept = [head for head in range(site.num_heads) if head not in heads]
        for role in ROLES:
            module = classifier.base.get_submodule(getattr(site, role))
            numbers = site.slices(role, kept, inner.attention_head_size)
            if role == "output":
                module.weight = nn.Parameter(module.weight[:, numbers].detach())
            else:
                module.weight = nn.Parameter(module.weight[numbers].detach())
                module.bias = nn.Parameter(module.bias[numbers].detach())
    classifier.base.config.pruned_heads = lost


@pytest.mark.parametrize("lost", [{0: [1]}, {1: [0, 2]}, {0: [0, 1], 1: [2]}], ids=str)
def test_layers_with_fewer_heads(tiny_bert: Path, lost: dict[int, list[int]]) -> None:
    found = bert(tiny_bert)
    cut_out(found, lost)
    sample = sample_of(found, batch_size=4)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    assert fast.savings == ALL
    counts = [site.num_heads for site in sample.sites]
    assert counts == [3 - len(lost.get(layer, ())) for layer in range(2)]
    there = np.arange(max(counts)) < np.array(counts)[:, None]  # (L, H)
    for result in (fast, naive):
        np.testing.assert_array_equal(np.isfinite(result.without).all((0, 3)), there)
        for measure in MEASURES.values():
            np.testing.assert_array_equal(np.isfinite(measure(result)).all(0), there)
    assert_equal_up_to_rounding(fast.without, naive.without)


def test_one_layer(tiny_bert: Path) -> None:
    found = bert(tiny_bert)
    config = BertConfig(**{**found.base.config.to_dict(), "num_hidden_layers": 1})
    torch.manual_seed(4)
    sample = sample_of(replace(found, model=BertForSequenceClassification(config)), batch_size=4)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    assert (fast.savings, fast.without.shape) == (ALL, (6, 1, 3, 2))
    assert_equal_up_to_rounding(fast.without, naive.without)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "naive"])
def test_a_head_without_values_measures_nothing(tiny_bert: Path, fast: bool) -> None:
    found = bert(tiny_bert)
    sample = sample_of(found, batch_size=4)
    for layer, head in ((0, 2), (1, 1)):
        value = found.base.get_submodule(sample.sites[layer].value)
        with torch.no_grad():
            value.weight[8 * head : 8 * head + 8] = 0
            value.bias[8 * head : 8 * head + 8] = 0
    result = ablation(sample, fast=fast)
    for name, measure in MEASURES.items():
        values = measure(result)
        assert (values[:, [0, 1], [2, 1]] == 0).all()
        if name != "accuracy":
            assert (np.delete(values.reshape(6, 6), [2, 4], axis=1) != 0).all()


def test_the_weights_may_be_bf16(tiny_bert: Path) -> None:
    found = bert(tiny_bert)
    exact = ablation(sample_of(found, batch_size=4), fast=False).without
    found.base.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in found.base.state_dict().items()}
    fast, naive = (ablation(sample_of(found, batch_size=4), fast=way) for way in (True, False))
    assert fast.savings == ALL  # tried in float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.base.state_dict().items())
    # Both ways are as far from float32: measured 0.135 and 0.138, for logits up to 4.5.
    assert np.abs(fast.without - exact).max() < 0.3
    assert np.abs(naive.without - exact).max() < 0.3


def test_the_passes_may_be_bf16(tiny_bert: Path) -> None:
    found = bert_lora(tiny_bert)
    sample = sample_of(found, batch_size=4)
    exact = ablation(sample, fast=False).without
    # An accelerator that says bf16 would do so for the whole test process.
    half = replace(sample, accelerator=_Bf16(sample.accelerator))  # type: ignore[arg-type]
    fast, naive = (ablation(half, fast=way) for way in (True, False))
    assert fast.savings == ALL
    # Both ways are as far from float32: measured 0.197 and 0.196, for logits up to 3.2.
    assert 1e-4 < np.abs(fast.without - exact).max() < 0.3
    assert 1e-4 < np.abs(naive.without - exact).max() < 0.3


class _Bf16:
    def __init__(self, accelerator: Accelerator) -> None:
        self.device, self.process_index, self.num_processes = accelerator.device, 0, 1

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def hooks(base: nn.Module) -> list[str]:
    """Modules with a hook or a forward of their own."""
    return [
        name
        for name, module in base.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


def test_the_model_is_restored_even_after_an_error(sample: GatedRows) -> None:
    base = sample.classifier.base
    base.train()
    asking = {name for name, p in base.named_parameters() if p.requires_grad}
    ablation(sample)
    assert hooks(base) == []
    assert base.training
    assert {name for name, p in base.named_parameters() if p.requires_grad} == asking
    inputs = {"input_ids": torch.tensor([[2, 3, 4]])}
    reuse = prefix_reuse(base, sample.sites, shared_attention=True)
    base.eval()
    full, _ = logits_without(reuse, inputs)
    for failing in (1, 2, 3, 4):  # the full pass, and the passes of either layer
        calls = []

        def fail(module: nn.Module, args: object, at: int = failing, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == at:
                raise ZeroDivisionError

        handle = base.get_submodule(sample.sites[1].output).register_forward_pre_hook(fail)
        if failing <= 3:
            with pytest.raises(ZeroDivisionError):
                logits_without(reuse, inputs)
        else:
            logits_without(reuse, inputs)
        handle.remove()
        assert len(calls) == min(failing, 3)
        assert hooks(base) == []
    assert torch.equal(logits_without(reuse, inputs)[0], full)


def test_measures_are_of_the_rows_in_their_order(tiny_bert: Path) -> None:
    found = tiny_classifier(tiny_bert)
    order = np.array([4, 0, 5])
    parts, together = sample_of(found, batch_size=2).subset(order), sample_of(found, batch_size=6)
    for measure in (Ablation.loss, Ablation.kl):
        assert_equal_up_to_rounding(measure(ablation(parts)), measure(ablation(together))[order])
