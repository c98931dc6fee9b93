"""Encoder layers that are computed again in the backward pass (recipe key `training.gradient_checkpointing`).

Only the input of each layer is kept for the backward pass, which computes the layer a second time, with the same
dropout masks (Chen et al. 2016, section 4). The gradients are the same, in less memory and more time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune.errors import ModelError
from finetune.models.architectures import encoder_layers
from finetune.models.padding_free import PaddingFree
from finetune.models.speedups import training_kernels


def check_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Raise ModelError if the layers of this model cannot be computed again."""
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in encoder_layers(model)):
        raise ModelError(
            f"training.gradient_checkpointing is true, but transformers does not support it for the layers of a "
            f"'{model.config.model_type}' model; remove the key, or use smaller batches with gradient accumulation"
        )


@contextmanager
def checkpointed_layers(
    model: PreTrainedModel, device: torch.device, padding_free: PaddingFree | None = None
) -> Iterator[None]:
    """Inside the context a forward pass in training mode keeps only the inputs of the layers.

    Args:
        padding_free: how the layers compute only real tokens; None: they compute padded batches.
    """
    layers: list[Any] = [*encoder_layers(model)]
    # The kernels of training are in use in the first pass only; the second pass must draw the same dropout masks.
    contexts = partial(_contexts, device, padding_free)
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        layer.gradient_checkpointing = True
    try:
        yield
    finally:
        for layer in layers:
            del layer._gradient_checkpointing_func, layer.gradient_checkpointing


def _contexts(
    device: torch.device, padding_free: PaddingFree | None
) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return the contexts of the first and of the second computation of a layer."""
    return nullcontext(), _second_pass(device, padding_free.recomputed() if padding_free else nullcontext())


@contextmanager
def _second_pass(device: torch.device, packed: AbstractContextManager[None]) -> Iterator[None]:
    with packed, training_kernels(device, compiled=False):
        yield
