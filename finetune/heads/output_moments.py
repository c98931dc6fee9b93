"""What one pass over training rows shows about output projections: second moments of their inputs and gradients.

B batch, C classes, D inputs of a projection, E outputs, N tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.batching import LocalBatch
from finetune.heads.gated_forward import GatedRows, attention_kernel
from finetune.heads.sublayers import Sublayer


@dataclass(frozen=True)
class OutputMoments:
    """Moments of the input x of an output projection, and of the gradient g at its output, in float64.

    Only tokens count on which the logits depend: no padding, and in the last layer of some models only the first token.

    Attributes:
        mean: E[x] over tokens, (D,); 0 if the projection has no bias, which could not add a mean.
        covariance: E[(x - mean)(x - mean)'] over tokens, (D, D).
        sensitivity: the sum of g g' over the tokens of a row, as the mean over rows, (E, E). The gradient is that of
            the logits in a random direction r with E[r r'] = 1, so d' sensitivity d is the expected squared change of
            the logits, in the first order, if the output changes by d with a random sign per token.
    """

    mean: Tensor
    covariance: Tensor
    sensitivity: Tensor


class _Sums:
    """Sums over tokens: their number, x, x x' and g g'."""

    def __init__(self) -> None:
        self.tokens = 0
        self.inputs: Any = 0.0
        self.products: Any = 0.0
        self.gradients: Any = 0.0

    def add(self, inputs: Tensor, gradient: Tensor) -> None:
        """Add the tokens of a batch that have a gradient."""
        gradient = gradient.flatten(0, -2).float()
        used = gradient.any(-1)
        gradient, inputs = gradient[used], inputs.flatten(0, -2)[used].float()
        self.tokens += len(inputs)
        self.inputs = self.inputs + inputs.sum(0).cpu().double()
        self.products = self.products + (inputs.T @ inputs).cpu().double()
        self.gradients = self.gradients + (gradient.T @ gradient).cpu().double()

    def moments(self, rows: int, *, centered: bool) -> OutputMoments:
        """Return the moments; not `centered`: around 0."""
        mean = self.inputs / max(1, self.tokens) * float(centered)
        covariance = self.products / max(1, self.tokens) - torch.outer(mean, mean)
        return OutputMoments(mean, covariance, self.gradients / rows)


def output_moments(sample: GatedRows, parts: Sequence[Sublayer], seed: int) -> list[OutputMoments]:
    """Return the moments of the output projection of each sublayer, from one forward and backward pass over the rows.

    Args:
        seed: of the random directions.
    """
    base, sums = sample.classifier.base, [_Sums() for _ in parts]
    generator = torch.Generator().manual_seed(seed)

    def observe(batch: LocalBatch, positions: np.ndarray) -> np.ndarray:
        with attention_kernel(sample.accelerator.device), _observed(base, parts, sums):
            logits = base(**batch.inputs).logits.float()
        directions = torch.randn(logits.shape, generator=generator).to(logits)
        (logits * directions).sum().backward()
        return np.zeros(len(positions))

    sample.map_batches(observe)
    biases = [base.get_submodule(sublayer.output).bias is not None for sublayer in parts]
    return [part.moments(len(sample), centered=bias) for part, bias in zip(sums, biases, strict=True)]


@contextmanager
def _observed(base: nn.Module, parts: Sequence[Sublayer], sums: Sequence[_Sums]) -> Iterator[None]:
    """Add the inputs and gradients of every pass inside the block to the sums, during its backward pass."""

    def after(part: _Sums, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not states.requires_grad:  # the first projection: all weights are frozen
            states.requires_grad_()
        states.register_hook(partial(part.add, args[0]))

    handles = [
        base.get_submodule(sublayer.output).register_forward_hook(partial(after, part))
        for sublayer, part in zip(parts, sums, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
