"""Choose which weights are trained, and keep trained weights in float32 in a model of lower precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.models.encoder_parts import check_separate_layers, embedding_modules, layer_modules


@dataclass(frozen=True)
class Freezing:
    """The parts of the encoder that are not trained.

    Attributes:
        embeddings: whether the embeddings are frozen, with their norm and projection.
        layers: number of lowest layers that are frozen.
    """

    embeddings: bool = False
    layers: int = 0


NOTHING_FROZEN = Freezing()


def freeze(model: PreTrainedModel, freezing: Freezing) -> None:
    """Freeze the parts of the encoder that `freezing` names.

    Raises:
        ModelError: the model has fewer layers, or its layers share weights.
    """
    if freezing.layers:
        check_separate_layers(model, "training.freeze_layers", freezing.layers, freezing.layers)
    for module in embedding_modules(model) if freezing.embeddings else ():
        module.requires_grad_(False)
    for modules in layer_modules(model)[: freezing.layers]:
        for module in modules:
            module.requires_grad_(False)


def keep_float32(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Convert these modules of a model of lower precision to float32, and cast their inputs.

    They are trained: in bfloat16 most updates would be smaller than the rounding error of the weight.
    """
    for name in modules:
        module = model.get_submodule(name)
        if any(p.dtype != torch.float32 for p in module.parameters()):
            module.float().register_forward_pre_hook(_cast_inputs_to_float32)


def undo_keep_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the modules of `keep_float32` to `dtype`, as they will be when a checkpoint of that dtype is loaded."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _cast_inputs_to_float32:
                del module._forward_pre_hooks[key]
                module.to(dtype)


def _cast_inputs_to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
