"""Linear layers that multiply in int8 on a CPU (recipe key `training.mixed_precision: int8`).

SwitchBack (Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models",
algorithm 1): a linear layer multiplies its input, and the gradient of its output, by the weight in int8. The gradient
of a trained weight and everything else is float32: biases, adapters, norms, softmax, GELU and the optimizer.

- An input has one scale and one zero point per token, so that its 255 levels span the token's values: those after GELU
  are nearly all positive. A gradient has a scale per token.
- A weight has one scale per output. One int8 copy serves both products, because these scales can be multiplied into
  the gradient.

Weights have seven bits: processors without VNNI add pairs of products of an unsigned and a signed byte in 16 bits and
saturate silently, and 2 x 255 x 64 = 32,640 still fits. Sums of integers are exact, so the products are the same on
every processor. The result of a token does not depend on the other tokens of the batch.

    T tokens, I inputs, O outputs
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.adapted import is_adapter_layer
from finetune.models.architectures import encoder_layers
from finetune.models.encoder_parts import layer_modules

ROW_LEVELS, WEIGHT_LEVELS = 127, 64  # the largest integers
_SMALLEST_SCALE = 1e-30  # of a row of zeros


class Rows(NamedTuple):
    """Inputs or gradients in int8: scales * values + zeros.

    Attributes:
        values: int8, (T, I).
        scales, zeros: float32, (T, 1).
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor


class Weight(NamedTuple):
    """A weight in int8: scales^T * values.

    Attributes:
        values: int8, (O, I).
        scales: float32, (1, O).
        sums: the sum of the weights of each output, as rounded, (1, O).
    """

    values: Tensor
    scales: Tensor
    sums: Tensor


def quantize_inputs(inputs: Tensor) -> Rows:
    """Return float32 inputs (T, I) in int8.

    A token with a value that is not finite gets a scale that is not finite, and so is every product with it.
    """
    lowest, highest = inputs.amin(1, keepdim=True).clamp_max_(0), inputs.amax(1, keepdim=True).clamp_min_(0)
    scales = highest.sub_(lowest).div_(2 * ROW_LEVELS).clamp_min_(_SMALLEST_SCALE)
    zeros = lowest.addcmul_(scales, torch.tensor(float(ROW_LEVELS)))
    values = torch.addcmul(-zeros / scales, inputs, scales.reciprocal())
    return Rows(values.round_().to(torch.int8), scales, zeros)


def quantize_weight(weight: Tensor) -> Weight:
    """Return a float32 weight (O, I) in int8."""
    scales = weight.abs().amax(1, keepdim=True).div_(WEIGHT_LEVELS).clamp_min_(_SMALLEST_SCALE)
    values = (weight / scales).round_()
    return Weight(values.to(torch.int8), scales.t(), (values.sum(1, keepdim=True) * scales).t())


def product(rows: Rows, weight: Weight, bias: Tensor | None) -> Tensor:
    """Return inputs times the weight's transpose plus the bias, (T, O)."""
    output = rows.zeros * weight.sums if bias is None else torch.addmm(bias, rows.zeros, weight.sums)
    sums = torch._int_mm(rows.values, weight.values.t())
    return output.addcmul_(sums.float().mul_(rows.scales), weight.scales)


def input_gradient(gradient: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """Return the gradient of the inputs (T, I) for that of the output (T, O) and a weight's values and scales."""
    gradient = gradient * scales
    row_scales = gradient.abs().amax(1, keepdim=True).div_(ROW_LEVELS).clamp_min_(_SMALLEST_SCALE)
    return torch._int_mm(gradient.div_(row_scales).round_().to(torch.int8), values).float().mul_(row_scales)


def int8_layers(base: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear layers in the encoder's layers, without those of adapters; shared ones once.

    Layers with one input or one output are left out: for those torch 2.13 returns wrong products.
    """
    layers = [*encoder_layers(base), *(part for parts in layer_modules(base) for part in parts)]
    found = {id(module): module for layer in layers for module in _without_adapters(layer)}
    return [module for module in found.values() if type(module) is nn.Linear and min(module.weight.shape) > 1]


def _without_adapters(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module and all modules in it; of a layer with adapters only the layer below them."""
    if is_adapter_layer(module):
        module = module.get_base_layer()
    yield module
    for child in module.children():
        yield from _without_adapters(child)


def check_int8_layers(base: PreTrainedModel) -> None:
    """Raise ModelError if the model has no layers that can multiply in int8."""
    if not int8_layers(base):
        raise ModelError(
            f"the encoder of a '{base.config.model_type}' model has no plain linear layers, which are what multiplies "
            "in int8; set training.mixed_precision: auto (finetune predict: remove --int8)"
        )


@contextmanager
def int8_products(base: PreTrainedModel) -> Iterator[None]:
    """Inside the context the encoder's linear layers multiply in int8.

    The int8 copy of a frozen weight is made once, that of a trained weight in every forward pass. Entered without
    gradients, as for scoring, every copy is made once: weights must not change inside.
    """
    layers, products = int8_layers(base), _Products(scoring=not torch.is_grad_enabled())
    outer = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = partial(products.linear, layer)
        yield
    finally:
        for layer, forward in zip(layers, outer, strict=True):
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


@dataclass
class _Products:
    """The int8 copies of weights, and of the last input, which query, key and value share.

    Attributes:
        scoring: whether all weights keep their values.
    """

    scoring: bool
    _weights: dict[int, Weight] = field(default_factory=dict)
    _last: tuple[weakref.ref[Tensor], int, Rows] | None = None

    def linear(self, layer: nn.Linear, inputs: Tensor) -> Tensor:
        """Return the output of the layer, (..., O), for inputs (..., I)."""
        rows, copy = self._rows(inputs), self._weight(layer.weight)
        output: Tensor = _Int8Linear.apply(  # type: ignore[no-untyped-call]
            inputs.reshape(-1, inputs.shape[-1]), layer.weight, layer.bias, rows, copy
        )
        return output.view(*inputs.shape[:-1], len(layer.weight))

    @torch.no_grad()
    def _weight(self, weight: Tensor) -> Weight:
        if weight.requires_grad and not self.scoring:
            return quantize_weight(weight)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = quantize_weight(weight)
        return self._weights[id(weight)]

    @torch.no_grad()
    def _rows(self, inputs: Tensor) -> Rows:
        if self._last is not None and self._last[0]() is inputs and self._last[1] == inputs._version:
            return self._last[2]
        rows = quantize_inputs(inputs.reshape(-1, inputs.shape[-1]))
        self._last = weakref.ref(inputs), inputs._version, rows
        return rows


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, copy: Weight) -> Tensor:
        """Return the output (T, O), and keep what `backward` needs."""
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, copy.values, copy.scales)
        return product(rows, copy, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of inputs, weight and bias for that of the output, (T, O)."""
        inputs, values, scales = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            input_gradient(gradient, values, scales) if needs_inputs else None,
            gradient.t() @ inputs if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
            None,
            None,
        )
