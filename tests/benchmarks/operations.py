"""Model FLOPs utilization: the matrix products of an epoch, and the rate at which the same products run alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.speedups import first_token_only

_LENGTH = 5  # tokens of the row that shows what is computed; any number above 1
_REPEATS = 15


def operations(classifier: Classifier, lengths: np.ndarray, *, shortcuts: bool) -> float:
    """Return the floating-point operations of the matrix products that one epoch of training needs, without padding.

    Per weight and token: 2 in the forward pass, 2 for the gradient of the input if it has one, and 2 for the gradient
    of the weight if it is trained. Attention multiplies twice in the forward pass, and four times in the backward pass.

    Args:
        lengths: number of tokens of each row.
        shortcuts: whether the last layer computes only the first token if the classification head reads no other.
    """
    per_token, per_row = 0, 0

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add the operations of a linear layer, from the shape of its input and whether gradients flow."""
        nonlocal per_token, per_row
        weight, values = module.weight, inputs[0]
        assert isinstance(weight, Tensor)
        products = 1 + values.requires_grad + weight.requires_grad
        positions = values.numel() // values.shape[-1]
        assert positions in (1, _LENGTH), f"a linear layer gets {positions} tokens of a row of {_LENGTH}"
        if positions == 1:
            per_row += 2 * products * weight.numel()
        else:
            per_token += 2 * products * weight.numel()

    device = next(classifier.model.parameters()).device
    ids = torch.ones((1, _LENGTH), dtype=torch.long, device=device)
    with first_token_only(classifier.base) if shortcuts else nullcontext(), ExitStack() as hooks:
        for module in classifier.model.modules():
            if isinstance(module, nn.Linear):
                hooks.callback(module.register_forward_pre_hook(count).remove)
        classifier.base(input_ids=ids, attention_mask=torch.ones_like(ids))
    layers, width = len(attention_sites(classifier.base)), classifier.base.config.hidden_size
    lengths = lengths.astype(np.float64)
    return per_token * lengths.sum() + per_row * len(lengths) + 12 * layers * width * (lengths**2).sum()


def product_rate(classifier: Classifier, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the matrix products of a training step, run without anything else.

    On a CPU each product is timed with PyTorch's kernel and with oneDNN's, and the faster one counts.

    Args:
        tokens: number of tokens in a step.
    """
    width, inner = classifier.base.config.hidden_size, classifier.base.config.intermediate_size
    seconds, count = 0.0, 0.0
    for rows, columns, times in ((width, width, 4), (width, inner, 1), (inner, width, 1)):
        inputs, weight, gradient = (
            torch.randn(shape, device=device).to(dtype)
            for shape in ((tokens, rows), (columns, rows), (tokens, columns))
        )
        for left, right in ((inputs, weight), (gradient, weight.t()), (gradient.t(), inputs.t())):
            kernels = [nn.functional.linear, *([onednn_linear] if device.type == "cpu" else [])]
            seconds += times * min(median_seconds(kernel, left, right) for kernel in kernels)
            count += times * 2.0 * tokens * rows * columns
    return count / seconds


def onednn_linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return inputs weight^T, computed by oneDNN; for float32 PyTorch calls another library."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")
    return result


def median_seconds(kernel: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """Return the median time of a product, after one that is not timed."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        kernel(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
