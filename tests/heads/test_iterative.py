from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads.ablation import ablation
from finetune.heads.gated_forward import GatedRows
from finetune.heads.gradients import gradient, integrated_gradients
from finetune.heads.importance_estimate import Estimate, removal_order
from finetune.heads.methods import iterative, measure_importance
from finetune.heads.shapley import shapley_values
from finetune.models.attention_sites import attention_sites
from finetune.models.head_gates import head_gates
from tests.conftest import SENTENCES
from tests.models.test_head_gates import BUILDERS, bert, zero_columns
from tests.support.families import build, save_checkpoint
from tests.support.helpers import assert_equal_up_to_rounding, encoded, sample_of


def scorer_of(sample: GatedRows, gates: torch.Tensor) -> Estimate:
    with head_gates(sample.classifier.base, sample.sites, gates, check_calls=False):
        return gradient(sample)


@pytest.fixture(params=[*BUILDERS, "albert"], ids=lambda build: getattr(build, "__name__", build))
def sample(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> GatedRows:
    if request.param == "albert":  # four layers in two groups that share their weights
        classifier = build(save_checkpoint("albert", tmp_path), None)
    else:
        classifier = request.param(tiny_bert)
    # All rows have one length. With two lengths the savings are checked twice, which could hide a wrong call order.
    return sample_of(classifier, split=encoded(classifier, [SENTENCES[2], SENTENCES[0], SENTENCES[2]], [0, 1, 1]))


def some_removed(sample: GatedRows) -> torch.Tensor:
    gates = sample.gates()
    gates[0, 1] = gates[1, 0] = gates[-1, 2] = 0
    return gates


def test_nested_gates_multiply(sample: GatedRows) -> None:
    base, sites, outer = sample.classifier.base.eval(), sample.sites, some_removed(sample)
    inputs = sample.classifier.tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt").data
    inner = torch.rand(2, *outer.shape)
    with torch.no_grad():
        with head_gates(base, sites, outer, check_calls=False), head_gates(base, sites, inner):
            nested = base(**inputs).logits
        with head_gates(base, sites, inner * outer):
            product = base(**inputs).logits
        plain = base(**inputs).logits
    torch.testing.assert_close(nested, product, rtol=0, atol=0)
    assert not torch.allclose(nested, plain, atol=1e-5)


def test_fast_ablation_of_the_remaining_heads_equals_naive(sample: GatedRows) -> None:
    with head_gates(sample.classifier.base, sample.sites, some_removed(sample), check_calls=False):
        fast, slow = ablation(sample), ablation(sample, fast=False)
    assert_equal_up_to_rounding(fast.without, slow.without)
    assert_equal_up_to_rounding(fast.full, slow.full)
    assert np.abs(slow.full - ablation(sample).full).max() > 1e-4  # the removed heads mattered
    removed = (some_removed(sample) == 0).numpy()
    assert np.abs(slow.without - slow.full[:, None, None])[:, removed].max() == 0
    assert np.abs(slow.without - slow.full[:, None, None])[:, ~removed].max(0).max(-1).min() > 1e-6


def test_fast_ablation_is_used_when_heads_are_removed(tiny_bert: Path) -> None:
    for number, make in enumerate(BUILDERS):
        sample = sample_of(make(tiny_bert))
        plain = ablation(sample).savings
        with head_gates(sample.classifier.base, sample.sites, some_removed(sample), check_calls=False):
            assert ablation(sample).savings == plain, number
        assert plain


@pytest.mark.parametrize("measure", ["gradient", "integrated_gradients", "ablation_kl", "shapley"])
def test_importance_equals_that_in_a_model_without_the_removed_heads(tiny_bert: Path, measure: str) -> None:
    measures = {
        "gradient": lambda sample: gradient(sample).values,
        "integrated_gradients": lambda sample: integrated_gradients(sample, 3).values,
        "ablation_kl": lambda sample: ablation(sample).kl().mean(0),
        "shapley": lambda sample: shapley_values(sample, max_permutations=8).values,
    }
    sample = sample_of(bert(tiny_bert))
    gates, base = some_removed(sample), sample.classifier.base
    with head_gates(base, sample.sites, gates, check_calls=False):
        gated = measures[measure](sample)
    for layer, head in np.argwhere(gates.numpy() == 0):
        zero_columns(base.get_submodule(sample.sites[layer].output), slice(8 * head, 8 * head + 8))
    assert_equal_up_to_rounding(gated, measures[measure](sample))
    assert np.abs(gated[gates.numpy() == 0]).max() == 0


def test_round_two_measures_the_heads_that_remain_after_round_one(tiny_bert: Path) -> None:
    sample, rounds = sample_of(bert(tiny_bert)), []

    def scorer(gates: torch.Tensor) -> Estimate:
        rounds.append((gates.clone(), scorer_of(sample, gates)))
        return rounds[-1][1]

    result = iterative(sample, scorer, rounds=3)
    assert result.order is not None
    assert [int((gates == 0).sum()) for gates, _ in rounds] == [0, 2]  # the last part uses the estimate of round two
    first, second = (removal_order(estimate.values, sample.sites) for _, estimate in rounds)
    assert list(result.order[:2]) == first[:2]
    for layer, head in first[:2]:
        zero_columns(sample.classifier.base.get_submodule(sample.sites[layer].output), slice(8 * head, 8 * head + 8))
    assert_equal_up_to_rounding(rounds[1][1].values, gradient(sample).values)
    assert list(result.order[2:]) == [cell for cell in second if rounds[1][0][cell] > 0]
    highest = -np.inf
    for step, cell in enumerate(result.order):
        measured = rounds[min(step // 2, 1)][1]
        highest = max(highest, measured.values[cell])
        assert result.values[cell] == highest
        assert result.errors is not None
        assert measured.errors is not None
        expected = (
            measured.errors[cell] if measured.values[cell] == highest else np.nan
        )  # a value taken from another head has no error
        np.testing.assert_equal(result.errors[cell], expected)
    assert second != first  # otherwise measuring again would change nothing


def test_one_round_gives_the_order_of_the_method(tiny_bert: Path) -> None:
    sample = sample_of(bert(tiny_bert))
    plain = gradient(sample)
    result = iterative(sample, lambda gates: scorer_of(sample, gates), rounds=1)
    assert list(result.order or ()) == removal_order(plain.values, sample.sites)


@pytest.mark.parametrize("rounds", [1, 2, 4, 6, 10])
def test_each_head_is_removed_once_and_each_layer_keeps_one_to_the_end(rounds: int, tiny_bert: Path) -> None:
    sample, rng, calls = sample_of(bert(tiny_bert)), np.random.default_rng(rounds), []

    def scorer(gates: torch.Tensor) -> Estimate:
        calls.append(int(gates.sum()))
        return Estimate(
            np.array([[0.0, 0.1, 0.2], [5.0, 6.0, 7.0]]) + rng.random((2, 3))
        )  # layer 0 would be removed first

    result = iterative(sample, scorer, rounds)
    assert result.order is not None
    assert sorted(result.order) == [(layer, head) for layer in range(2) for head in range(3)]
    assert {layer for layer, _ in result.order[-2:]} == {0, 1}
    assert result.errors is None
    # No call is wasted if there are fewer heads than rounds, and the last part needs none unless it is the only one.
    assert len(calls) == {1: 1, 2: 1, 4: 3, 6: 5, 10: 5}[rounds]
    assert (np.diff([result.values[cell] for cell in result.order]) >= 0).all()


@pytest.mark.parametrize("method", ["iterative_ablation_kl", "iterative_shapley"])
def test_the_model_is_not_changed(tiny_bert: Path, method: str) -> None:
    sample = sample_of(bert(tiny_bert))
    base = sample.classifier.base.train()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    measure_importance(sample, method, steps=1, seed=0)
    assert base.training
    assert sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in base.modules()) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    base.eval()
    with pytest.raises(ZeroDivisionError), head_gates(base, attention_sites(base), sample.gates(), check_calls=False):
        raise ZeroDivisionError
    assert sum(len(module._forward_pre_hooks) for module in base.modules()) == 0
