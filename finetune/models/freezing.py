"""Choose which weights are trained, and keep trained weights in float32 in a model of lower precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.attention_sites import attention_sites


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
    sites = attention_sites(model)
    shared = len({site.output for site in sites}) < len(sites)
    if freezing.layers > len(sites) or (freezing.layers and shared):
        reason = "shares weights between its layers; set it to 0" if shared else f"has {len(sites)} layers; lower it"
        raise ModelError(
            f"training.freeze_layers is {freezing.layers}, but this '{model.config.model_type}' model {reason}"
        )
    encoder = model.base_model
    if freezing.embeddings:
        names = {"embeddings", family_of(model.config).embedding_projection} - {""}
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Embedding) or name in names:
                module.requires_grad_(False)
    for module in encoder.modules():
        # Every list with one item per layer: XLM has separate lists for attention, norms and feed-forward.
        if isinstance(module, nn.ModuleList) and len(module) == len(sites):
            for layer in module[: freezing.layers]:
                layer.requires_grad_(False)


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
