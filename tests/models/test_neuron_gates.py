"""Gates on feed-forward neurons: the same as zeroed columns, per example, with exact gradients, restored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.feed_forward_sites import feed_forward_sites, max_num_neurons
from finetune.models.head_gates import head_gates
from finetune.models.neuron_gates import neuron_gates
from finetune.models.neuron_pruning import prune_neurons
from tests.models.test_head_gates import bert, bert_lora, zero_columns
from tests.support.families import random_model
from tests.support.helpers import assert_equal_up_to_rounding

REASONS = {
    "mobilebert": "its layers have several feed-forward networks, one after the other",
    "multi_head_classifier": "its layers have no feed-forward network",
    "squeezebert": "its projections are grouped convolutions",
}
IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}


# One family per kind of network; test_head_pruning.py compares gates of 0 with pruned neurons in all of them.
@pytest.mark.parametrize(
    "family", ["albert", "bert", "convbert", "distilbert", "eurobert", "ibert", "modernbert", "xlm", *REASONS]
)
def test_a_gate_of_zero_equals_a_zeroed_column(family: str) -> None:
    model = random_model(family).eval()
    if family in REASONS:
        with pytest.raises(ModelError, match=f"neurons of a '{family}' model cannot be pruned: {REASONS[family]}"):
            feed_forward_sites(model)
        return
    sites = feed_forward_sites(model)
    shared = {site.output for site in sites}
    assert (len(shared), len(sites)) == (2, 4 if family == "albert" else 2)
    assert {site.num_neurons for site in sites} == {96 if family == "xlm" else 32}
    ungated, gates = model(**INPUTS).logits, torch.ones(len(sites), max_num_neurons(sites))
    gates[:, [0, 3]] = 0
    with neuron_gates(model, sites, gates):
        gated = model(**INPUTS).logits
    for path in shared:
        zero_columns(model.get_submodule(path), slice(0, 4, 3))
    assert model(**INPUTS).logits.equal(gated)
    assert not gated.equal(ungated)


@pytest.mark.parametrize("build", [bert, bert_lora])
def test_each_example_has_its_own_gates_and_gradients(build: Callable[..., object], tiny_bert: Path) -> None:
    base = build(tiny_bert).base.eval()  # type: ignore[attr-defined]
    sites, networks = attention_sites(base), feed_forward_sites(base)
    neurons, heads = torch.rand(2, 2, max_num_neurons(networks)), torch.rand(2, 2, 3)

    def gradients(rows: slice) -> tuple[Tensor, Tensor]:
        gates = neurons[rows].clone().requires_grad_()
        with head_gates(base, sites, heads[rows]), neuron_gates(base, networks, gates):
            logits = base(**{name: tensor[rows] for name, tensor in INPUTS.items()}).logits
        return logits, torch.autograd.grad(logits.square().sum(), gates)[0]

    both, first, second = (gradients(rows) for rows in (slice(0, 2), slice(0, 1), slice(1, 2)))
    for together, *alone in zip(both, first, second, strict=True):
        assert_equal_up_to_rounding(together.detach(), torch.cat(alone).detach())
    assert both[1].abs().amax(-1).min() > 0


def test_gates_survive_layers_of_other_sizes(tiny_bert: Path) -> None:
    base = bert(tiny_bert).base.eval()
    full = feed_forward_sites(base)[0].num_neurons
    prune_neurons(base, {0: list(range(full)), 1: [2]})
    sites = feed_forward_sites(base)
    assert [site.num_neurons for site in sites] == [0, full - 1]
    plain = base(**INPUTS).logits
    with neuron_gates(base, sites, torch.ones(2, full - 1)):
        assert_equal_up_to_rounding(base(**INPUTS).logits, plain)
    gates = torch.zeros(2, full - 1)
    with neuron_gates(base, sites, gates):
        gated = base(**INPUTS).logits
    prune_neurons(base, {1: list(range(full - 1))})
    assert_equal_up_to_rounding(base(**INPUTS).logits, gated)
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_a_wrong_shape_is_rejected(tiny_bert: Path) -> None:
    base = bert(tiny_bert).base
    with (
        pytest.raises(ModelError, match=r"gates have shape \(2, 4\); they must be \(B, 2, \d+\) or \(2, \d+\)"),
        neuron_gates(base, feed_forward_sites(base), torch.ones(2, 4)),
    ):
        pass
