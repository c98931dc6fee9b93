"""Products in int8: exact sums of integers, errors within their bounds, and a model that is restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models import int8_products as int8
from finetune.models.architectures import FAMILIES
from finetune.models.freezing import Freezing, freeze
from finetune.models.lora import Lora
from tests.support.families import random_model
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
WITHOUT_LINEAR_LAYERS = {"ibert", "squeezebert"}  # their quantized layers, and convolutions
# Cosines of the gradients of small random models; the others have at least 0.99. Their rounding errors are amplified by
# random weights, and in mobilebert by a norm without a deviation and by widths of 12.
LOW_COSINES = {"mobilebert": 0.8, "mpnet": 0.98, "multi_head_classifier": 0.975}


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def layer_in_int8(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of a linear layer with this weight and bias, in int8."""
    layer = nn.Linear(1, 1)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return int8._Products(scoring=False).linear(layer, inputs)


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 2, 2), (1, 64, 7), (5, 1536, 384), (65, 7, 33)])
def test_sums_of_integers_are_exact_in_the_worst_case(tokens: int, inputs: int, outputs: int) -> None:
    """Processors without VNNI saturate in 16 bits if a weight has more than 64 levels."""
    signs = random(outputs, inputs, seed=0).sign()
    signs[0], signs[1] = 1, -1
    weight = int8.quantize_weight(signs).values
    assert weight.unique().tolist() == [-64, 64]
    mixed = int8.quantize_inputs(random(tokens, inputs, seed=1)).values
    assert mixed.abs().max() == 127
    for rows in (mixed, torch.full_like(mixed, 127), torch.full_like(mixed, -127), mixed.sign() * 127):
        assert torch.equal(torch._int_mm(rows, weight.t()).long(), rows.long() @ weight.t().long())
    for level in (-127, 127):
        gradient = torch.full((tokens, outputs), level, dtype=torch.int8)
        assert torch.equal(torch._int_mm(gradient, weight).long(), gradient.long() @ weight.long())


def test_layers_with_one_input_or_output_are_left_out() -> None:
    config = {"num_hidden_layers": 1, "intermediate_size": 1}
    assert len(int8.int8_layers(random_model("bert", **config))) == 4


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shift", [0.0, 3.0])  # inputs on both sides of zero, and nearly all above it
def test_output_and_gradients_have_the_rounding_error_of_their_levels(biased: bool, shift: float) -> None:
    """Half a level of each factor: |error| <= sum |x| w/2 + |W| x/2 + x w/4 with the levels x and w."""
    inputs = (random(2, 5, 48, seed=0) + shift).requires_grad_()
    weight, bias = random(40, 48, seed=1, scale=0.1).requires_grad_(), random(40, seed=2).requires_grad_()
    gradient = random(2, 5, 40, seed=3)
    parts = [inputs, weight, *([bias] if biased else [])]
    results = []
    for function in (layer_in_int8, F.linear):
        output = function(inputs, weight, bias if biased else None)
        results.append([output.detach(), *torch.autograd.grad(output, parts, gradient)])
    (output, grad_inputs, *others), (exact, exact_grad_inputs, *exact_others) = results
    assert output.shape == exact.shape
    x, w = inputs.detach().view(10, 48), weight.detach()
    input_level = ((x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / 254)[:, None]
    weight_level = (w.abs().amax(1) / 64)[None]
    bound = x.abs().sum(1, keepdim=True) * weight_level / 2 + input_level / 2 * w.abs().sum(1)[None]
    bound = bound + 48 * input_level * weight_level / 4 + 1e-5  # and float32
    error = (output - exact).view(10, 40).abs()
    assert (error <= bound).all()
    assert error.max() > 1e-4  # it was computed in int8
    g = gradient.view(10, 40) * weight_level
    bound = g.abs().sum(1, keepdim=True) / 2 + g.abs().amax(1, keepdim=True) / 254 * 64 * 40 + 1e-5
    assert ((grad_inputs - exact_grad_inputs).view(10, 48).abs() <= bound).all()
    for actual, expected in zip(others, exact_others, strict=True):  # of weight and bias, in float32
        assert_equal_up_to_rounding(actual, expected)


def test_a_token_is_computed_alone_also_if_others_are_zero_or_not_finite() -> None:
    weight, bias = random(6, 8, seed=1), random(6, seed=2)
    inputs = random(4, 8, seed=0)
    expected = layer_in_int8(inputs, weight, bias)
    inputs[1, 2], inputs[2, 3], inputs[3] = torch.inf, torch.nan, 0
    result = layer_in_int8(inputs, weight, bias)
    assert_equal_up_to_rounding(result[0], expected[0], 1e-6)  # of the last addition only
    assert not result[1:3].isfinite().any()
    assert torch.equal(result[3], bias)
    zeros = layer_in_int8(random(4, 8, seed=0), torch.zeros(6, 8), bias)
    assert torch.equal(zeros, bias.expand(4, 6))


def outcome(classifier: Any) -> list[Tensor]:
    classifier.model.zero_grad()
    logits = classifier.model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]])).logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in classifier.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_model_is_restored_and_only_its_own_linear_layers_change(tiny_bert: Path, lora: Lora | None) -> None:
    classifier = tiny_classifier(tiny_bert, lora=lora)
    classifier.model.eval()
    names = {module: name for name, module in classifier.base.named_modules()}
    layers = [names[layer] for layer in int8.int8_layers(classifier.base)]
    assert len(layers) == 12
    assert all(".encoder.layer." in name and "lora_" not in name for name in layers)
    expected = outcome(classifier)
    with int8.int8_products(classifier.base):
        rounded = outcome(classifier)
        with torch.no_grad(), int8.int8_products(classifier.base):
            scored = classifier.model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]])).logits
        again = outcome(classifier)
    assert torch.equal(scored, rounded[0])
    assert all(torch.equal(one, other) for one, other in zip(rounded, again, strict=True))
    assert not torch.equal(rounded[0], expected[0])
    with pytest.raises(InterruptedError), int8.int8_products(classifier.base):
        raise InterruptedError
    assert not any("forward" in vars(module) for module in classifier.base.modules())
    assert all(torch.equal(one, other) for one, other in zip(outcome(classifier), expected, strict=True))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Tensor]:
    """Return a list of the matrices with which the function is called from now on."""
    calls: list[Tensor] = []
    function: Callable[[Tensor], Any] = getattr(int8, name)
    monkeypatch.setattr(int8, name, lambda matrix: (calls.append(matrix), function(matrix))[1])
    return calls


def test_frozen_weights_are_converted_once_and_trained_weights_in_each_pass(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = tiny_classifier(tiny_bert)
    freeze(classifier.base, Freezing(embeddings=True, layers=1))
    classifier.model.eval()
    weights, inputs = counted(monkeypatch, "quantize_weight"), counted(monkeypatch, "quantize_inputs")
    with int8.int8_products(classifier.base):
        for passes in (1, 2):
            before = outcome(classifier)
            assert len(weights) == 6 + 6 * passes
            assert len(inputs) == 8 * passes  # per layer: query, key and value share one
        with torch.no_grad():
            classifier.base.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
        assert not torch.equal(outcome(classifier)[0], before[0])
    weights.clear()
    with torch.no_grad(), int8.int8_products(classifier.base):
        for _ in range(2):
            classifier.model(input_ids=torch.tensor([[3, 4]]))
    assert len(weights) == 12


def test_inputs_that_were_changed_in_place_are_converted_again() -> None:
    layer, inputs = nn.Linear(8, 6), random(3, 8, seed=0)
    products = int8._Products(scoring=True)
    first = products.linear(layer, inputs)
    inputs.mul_(2)
    assert not torch.equal(products.linear(layer, inputs), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_gradient_of_float32(family: str) -> None:
    model = random_model(family).eval()
    assert bool(int8.int8_layers(model)) == (family not in WITHOUT_LINEAR_LAYERS)
    ids = torch.arange(2, 26).view(4, 6)

    def gradient() -> Tensor:
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradient()
    with int8.int8_products(model):
        rounded = gradient()
    assert torch.equal(rounded, exact) == (family in WITHOUT_LINEAR_LAYERS)
    assert F.cosine_similarity(rounded, exact, 0) > LOW_COSINES.get(family, 0.99)
