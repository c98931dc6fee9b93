"""Which weights are trained, and in what precision; and a model without the part that is not trained.

B batch, S tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import attention_sites

# Model type -> what makes of the embeddings what the layers get, outside the embeddings themselves: a projection to the
# hidden size, or a norm. Some configs have none.
_BEHIND_EMBEDDINGS = {
    "albert": "encoder.embedding_hidden_mapping_in",
    "convbert": "embeddings_project",
    "deberta-v2": "encoder.LayerNorm",  # of the relative positions
    "electra": "embeddings_project",
    "flaubert": "layer_norm_emb",
    "rembert": "encoder.embedding_hidden_mapping_in",
    "roformer": "embeddings_project",
    "xlm": "layer_norm_emb",
}


def freeze(model: PreTrainedModel, *, freeze_embeddings: bool, freeze_layers: int) -> None:
    """Stop the training of the embeddings, with their norm and projection, and of the lowest `freeze_layers` layers.

    Raises:
        ModelError: there are not so many layers, or layers share their weights.
    """
    sites = attention_sites(model)
    if freeze_layers > len(sites) or (freeze_layers and len({site.output for site in sites}) < len(sites)):
        raise ModelError(
            f"training.freeze_layers is {freeze_layers}, but a '{model.config.model_type}' model has {len(sites)} "
            "layers here, or shares weights between them; lower it"
        )
    encoder = model.base_model
    if freeze_embeddings:
        whole = {"embeddings", _BEHIND_EMBEDDINGS.get(model.config.model_type)}
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Embedding) or name in whole:
                module.requires_grad_(False)
    for module in encoder.modules():
        # Every list with an item for each layer: XLM keeps attention, norms and feed-forward in lists of their own.
        if isinstance(module, nn.ModuleList) and len(module) == len(sites):
            for layer in module[:freeze_layers]:
                layer.requires_grad_(False)


def keep_float32(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Hold these modules in float32 inside a model of lower precision, and cast what comes in.

    They are trained: in bfloat16 most updates would be smaller than the rounding of the weight they are added to.
    """
    for name in modules:
        module = model.get_submodule(name)
        if any(p.dtype != torch.float32 for p in module.parameters()):
            module.float().register_forward_pre_hook(_to_float32)


def hold_in_one_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Undo `keep_float32`: round those modules to `dtype`, as a checkpoint of that dtype is read back."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _to_float32:
                del module._forward_pre_hooks[key]
                module.to(dtype)


def _to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
