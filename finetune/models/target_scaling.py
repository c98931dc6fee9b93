"""Standardized targets in regression: train on (label - mean) / standard deviation, predict in the units of the labels.

A new classification head predicts values of size 1, and the learning rates of this toolkit are made for a loss of size
1. Labels of another size (prices, ratings from 10 to 50, shares of a per cent) would therefore train too slowly or
diverge. So the output layer of a classifier in training predicts the standardized value, and a hook on it returns

    logit = standardized * deviation + mean

Every other part of the toolkit sees logits, labels, metrics and losses in the units of the labels. Only the optimizer
minimizes the squared error of standardized values: the loss divided by `deviation` squared. After training, mean and
deviation are folded into weight and bias of the output layer, and the hook is removed. The saved model is then an
ordinary one that every library can use.

    N rows
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from finetune.errors import DataError
from finetune.models.classification_head import last_linear_layer
from finetune.models.classifier import Classifier

_MIN_DEVIATION = 1e-5  # as a share of the mean; float32 rounds to 6e-8 of it, so predictions to 0.006 deviations


@dataclass(frozen=True)
class TargetScaling:
    """Mean and standard deviation of the training labels."""

    mean: float
    deviation: float

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Return the output of the layer in the units of the labels, in float32: the forward hook of the layer."""
        return output.float() * self.deviation + self.mean


@dataclass(frozen=True)
class StandardizedOutput:
    """The output layer of a classifier that is trained on standardized targets.

    Attributes:
        layer: the output layer; it predicts the standardized value, before the hook.
        scaling: the hook.
        handle: removes the hook.
    """

    layer: nn.Linear
    scaling: TargetScaling
    handle: RemovableHandle


def target_scaling(labels: np.ndarray) -> TargetScaling:
    """Return mean and standard deviation of training labels (N,).

    Raises:
        DataError: all labels are equal, or too close together for the float32 numbers that models predict.
    """
    values = labels.astype(np.float64)
    mean, deviation = float(values.mean()), float(values.std())
    if np.ptp(values) == 0:
        raise DataError(
            f"all {len(values)} training rows have the value {values[0]:g}; a regression needs at least two different "
            "values"
        )
    if deviation < _MIN_DEVIATION * abs(mean):
        raise DataError(
            f"the training rows have the values {values.min():g} to {values.max():g}, which are too close together for "
            f"float32, in which models predict; subtract {mean:g} from all labels"
        )
    return TargetScaling(mean, deviation)


@torch.no_grad()
def standardize_output(classifier: Classifier, labels: np.ndarray) -> StandardizedOutput | None:
    """Let the output layer predict standardized values, and add the hook; the predictions stay the same.

    Returns None, and changes nothing, for classification, and for an output layer that is not trained, such as that of
    a checkpoint under adapters.

    Args:
        labels: of the training rows, (N,).
    """
    layer = last_linear_layer(classifier.model, 1) if classifier.problem_type == "regression" else None
    if layer is None or layer.bias is None or not (layer.weight.requires_grad and layer.bias.requires_grad):
        return None
    scaling = target_scaling(labels)
    layer.weight.div_(scaling.deviation)
    layer.bias.sub_(scaling.mean).div_(scaling.deviation)
    return StandardizedOutput(layer, scaling, layer.register_forward_hook(scaling))


@torch.no_grad()
def fold(output: StandardizedOutput | None) -> None:
    """Fold the scaling, if any, into the weights of the layer and remove the hook: the predictions stay the same."""
    if output is None:
        return
    output.layer.weight.mul_(output.scaling.deviation)
    output.layer.bias.mul_(output.scaling.deviation).add_(output.scaling.mean)
    output.handle.remove()


@contextmanager
def float32_predictions(classifier: Classifier) -> Iterator[None]:
    """Inside the context the output layer of a regression computes in float32, also under autocast.

    bfloat16 has 8 significant bits: it would round a predicted year to a multiple of 8.
    """
    layer = last_linear_layer(classifier.model, 1) if classifier.problem_type == "regression" else None
    if layer is None:
        yield
        return
    handle = layer.register_forward_hook(_float32_output, prepend=True)  # before that of `standardize_output`
    try:
        yield
    finally:
        handle.remove()


def _float32_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return the output of a linear layer in float32; a forward hook."""
    if output.dtype == torch.float32:
        return output
    assert isinstance(module, nn.Linear)
    with torch.autocast(output.device.type, enabled=False):
        bias = None if module.bias is None else module.bias.float()
        return F.linear(args[0].float(), module.weight.float(), bias)
