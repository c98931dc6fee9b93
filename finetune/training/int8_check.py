"""The check before training in int8 (`training.mixed_precision: int8`): is the gradient that of float32?"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from finetune.data.batching import LocalBatch, load_batches
from finetune.distributed import gather_results
from finetune.errors import ModelError, TrainingError
from finetune.models.int8_products import int8_layers, int8_products
from finetune.models.precision import INT8
from finetune.training.trainer import Trainer

MIN_COSINE = 0.99


def check_int8(trainer: Trainer) -> float | None:
    """Return the cosine of the gradients in int8 and in float32, the lowest of all processes; None in other precisions.

    Both are gradients of all trained weights on the first batch of the first epoch, without dropout.

    Raises:
        ModelError: the model has no layers that can multiply in int8.
        TrainingError: the cosine is below 0.99.
    """
    accelerator, base = trainer.accelerator, trainer.classifier.base
    if accelerator.mixed_precision != INT8:
        return None
    if not int8_layers(base):
        raise ModelError(
            f"training.mixed_precision is int8, but the encoder of a '{base.config.model_type}' model has no plain "
            "linear layers, which are what multiplies in int8; set training.mixed_precision: auto"
        )
    cosine = min(gather_results(accelerator, lambda: gradient_cosine(trainer)))
    if not cosine >= MIN_COSINE:  # also if it is undefined
        raise TrainingError(
            f"the gradient in int8 is not that of float32: on the first batch their cosine is {cosine:.3f}, and the "
            f"limit is {MIN_COSINE}; set training.mixed_precision: auto"
        )
    return cosine


def gradient_cosine(trainer: Trainer) -> float:
    """Return the cosine of this process's gradients in int8 and in float32; nan if one is zero or not finite."""
    accelerator, stepper = trainer.accelerator, trainer.stepper
    batch = next(
        load_batches(
            trainer.split,
            trainer.plan_rows(0)[0][:1],
            trainer.classifier.tokenizer,
            device=accelerator.device,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
    )
    stepper.model.module.eval()  # each step sets training mode
    int8 = _gradient(trainer, batch, int8_products(trainer.classifier.base))
    float32 = _gradient(trainer, batch, nullcontext())
    norms = (_dot(int8, int8) * _dot(float32, float32)) ** 0.5
    return _dot(int8, float32) / norms if norms > 0 else float("nan")


def _gradient(trainer: Trainer, batch: LocalBatch, context: AbstractContextManager[object]) -> list[Tensor | None]:
    """Return the gradient of each trained parameter, None where it has none."""
    stepper = trainer.stepper
    with context:
        loss = stepper.objective.losses(stepper.model, batch).sum()
        return list(torch.autograd.grad(loss, stepper.parameters, allow_unused=True))


def _dot(one: list[Tensor | None], other: list[Tensor | None]) -> float:
    """Return the sum of the products of all numbers, in float64."""
    pairs = zip(one, other, strict=True)
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in pairs if a is not None and b is not None)
