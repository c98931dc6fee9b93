"""The parts of an encoder from bottom to top: its embeddings, its layers, and what comes after them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.attention_sites import attention_sites


def embedding_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return all embedding tables of the encoder, and the modules that process embeddings before the first layer."""
    names = {"embeddings", family_of(model.config).embedding_projection} - {""}
    modules = model.base_model.named_modules()
    return [module for name, module in modules if isinstance(module, nn.Embedding) or name in names]


def layer_modules(model: PreTrainedModel) -> list[list[nn.Module]]:
    """Return the modules of each layer, lowest layer first.

    A layer may be several modules: XLM has separate lists for attention, norms and feed-forward. They are the items of
    every list in the encoder with one item per layer, except lists inside a layer.
    """
    num_layers = len(attention_sites(model))
    per_layer: dict[str, nn.ModuleList] = {}
    for name, module in model.base_model.named_modules():
        inside_layer = any(name.startswith(f"{outer}.") for outer in per_layer)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not inside_layer:
            per_layer[name] = module
    return [[modules[layer] for modules in per_layer.values()] for layer in range(num_layers)]


def check_separate_layers(model: PreTrainedModel, key: str, value: object, layers: int = 0) -> None:
    """Raise ModelError if the layers of the encoder share weights, or are fewer than `layers`.

    Args:
        key: the recipe key that needs separate layers, for the message.
        value: its value.
    """
    sites = attention_sites(model)
    shared = len({site.output for site in sites}) < len(sites)
    if not shared and layers <= len(sites):
        return
    reason = "shares weights between its layers; remove the key" if shared else f"has {len(sites)} layers; lower it"
    raise ModelError(f"{key} is {value}, but this '{model.config.model_type}' model {reason}")


def depths_from_top(model: PreTrainedModel) -> dict[int, int]:
    """Return the depth of parameters in the encoder, by id: 1 for the top layer, up to layers + 1 for the embeddings.

    All other parameters, such as those of a pooler or the classification head, are at the top, with depth 0.
    """
    layers = layer_modules(model)
    parts = [(len(layers) + 1, embedding_modules(model)), *enumerate(reversed(layers), 1)]
    return {id(p): depth for depth, modules in parts for module in modules for p in module.parameters()}
