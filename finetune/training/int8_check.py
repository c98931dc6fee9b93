"""The check before training in int8 (`training.mixed_precision: int8`): is the gradient that of float32?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import load_batches
from finetune.distributed import gather_results
from finetune.errors import TrainingError
from finetune.models.int8_products import check_int8_layers, int8_products
from finetune.models.precision import INT8
from finetune.training.trainer import Trainer

MIN_COSINE = 0.99
_ROWS = 128  # of each process, at least: on 32 rows of SST-2 the cosine varied by 0.003


def check_int8(trainer: Trainer) -> float | None:
    """Return the cosine of the gradients in int8 and in float32, the lowest of all processes; None in other precisions.

    Both are gradients of a random weighted sum of the logits of the first rows, with respect to all trained weights and
    without dropout. The gradient of the loss would not do: where it is nearly zero, as from a head that a linear probe
    fitted, what remains of it is mostly the rounding that the check is to judge.

    Raises:
        ModelError: the model has no layers that can multiply in int8.
        TrainingError: the cosine is below 0.99.
    """
    accelerator, base = trainer.accelerator, trainer.classifier.base
    if accelerator.mixed_precision != INT8:
        return None
    check_int8_layers(base)
    cosine = float(np.min(gather_results(accelerator, lambda: gradient_cosine(trainer))))  # nan if one of them is
    if not cosine >= MIN_COSINE:  # also if it is undefined
        raise TrainingError(
            f"the gradient in int8 is not that of float32: on the first rows their cosine is {cosine:.3f}, and the "
            f"limit is {MIN_COSINE}; set training.mixed_precision: auto"
        )
    return cosine


def gradient_cosine(trainer: Trainer) -> float:
    """Return the cosine of this process's gradients in int8 and in float32; nan if one is zero or not finite."""
    stepper = trainer.stepper
    micro_batches = [rows for step in trainer.plan_rows(0) for rows in step][: -(-_ROWS // stepper.batch_size)]
    stepper.model.module.eval()  # each step sets training mode
    int8 = _gradient(trainer, micro_batches, int8_products(trainer.classifier.base))
    float32 = _gradient(trainer, micro_batches, nullcontext())
    norms = (_dot(int8, int8) * _dot(float32, float32)) ** 0.5
    return _dot(int8, float32) / norms if norms > 0 else float("nan")


def _gradient(
    trainer: Trainer, micro_batches: Sequence[np.ndarray], context: AbstractContextManager[object]
) -> list[Tensor]:
    """Return the gradient of a random sum of logits for this process's rows of some micro-batches, by parameter."""
    stepper, accelerator = trainer.stepper, trainer.accelerator
    generator = torch.Generator().manual_seed(0)
    sums = [torch.zeros_like(parameter) for parameter in stepper.parameters]
    batches = load_batches(
        trainer.split,
        list(micro_batches),
        trainer.classifier.tokenizer,
        device=accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    with context:
        for batch in batches:
            logits = stepper.model.logits(batch.inputs).float()
            weighted = (logits * torch.randn(logits.shape, generator=generator)).sum()
            parts = torch.autograd.grad(weighted, stepper.parameters, allow_unused=True)
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
    return sums


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the sum of the products of all numbers, in float64."""
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(one, other, strict=True))
