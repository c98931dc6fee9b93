"""Prune attention heads: remove their rows and columns, so that matrices become smaller and the model faster.

A head is D rows of the query, key and value projections and D columns of the output projection; `AttentionSite.slices`
returns which. The model keeps its family's forward pass. The config lists the pruned heads as `pruned_heads`, in the
numbering of the unpruned model. Stock transformers 5 ignores that entry and rejects the sizes; `classifier_class`
returns the class that reads such a checkpoint.

    B batch, S tokens, H heads, D head width
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import HEAD_COUNT_ATTRIBUTES, family_of
from finetune.models.attention_sites import AttentionSite, attention_sites, pruned_heads, unpruned_sites
from finetune.models.pooled_classifier import pooled_class
from finetune.models.pooling import HEAD, pooling_of


def prune_heads(model: PreTrainedModel, heads: Mapping[int, Sequence[int]]) -> None:
    """Prune heads of a transformers classifier in place; may be repeated.

    Dtypes and `requires_grad` are kept. Parameters are replaced, so an optimizer must be created afterwards. The
    config's `pruned_heads` then lists all heads that were ever pruned.

    Args:
        heads: heads to prune per layer, in the current numbering of `attention_sites(model)`.

    Raises:
        ModelError: the family cannot be pruned, a layer or head does not exist, a layer would lose all its heads,
            layers that share weights would lose different heads, only some of the heads that share a key and a value
            are named, or the model has adapters.
    """
    sites, pruned = attention_sites(model), pruned_heads(model.config)
    original = {site.layer: range(site.num_heads) for site in unpruned_sites(model)}
    _remove(model, sites, heads)
    for layer, numbers in heads.items():
        remaining = [head for head in original[layer] if head not in pruned.get(layer, ())]
        pruned[int(layer)] = sorted([*pruned.get(layer, ()), *(remaining[number] for number in set(numbers))])
    if any(pruned.values()):
        model.config.pruned_heads = {layer: numbers for layer, numbers in sorted(pruned.items()) if numbers}
    _slice_position_bias(model)


def classifier_class(config: Any) -> Any:
    """Return the class whose `from_pretrained` reads a classifier's checkpoint with this config.

    If heads were pruned, by `prune_heads` or by transformers 4, this is a subclass of the family's class that prunes
    the new model before the weights are loaded. If the config has a pooling, the subclass is that of `pooled_class`.
    It has the family's class name.

    Raises:
        ModelError: heads were pruned or the config has a pooling, and it is not of a family in transformers.
    """
    pruned, is_pooled = bool(pruned_heads(config)), pooling_of(config) != HEAD
    if not pruned and not is_pooled:
        return AutoModelForSequenceClassification
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        what, fix = (
            ("lists pruned heads", "use the unpruned model") if pruned else ("has a pooling", "set model.pooling: head")
        )
        raise ModelError(
            f"the config of a '{config.model_type}' model {what}, which is supported only for classifiers in "
            f"transformers itself; {fix}"
        )
    family_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    if is_pooled:
        family_class = pooled_class(family_class)
    return _pruning_subclass(family_class) if pruned else family_class


def unpruned_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in the sizes of the unpruned model, with zeros for the pruned heads.

    Its outputs equal those of the pruned model up to rounding, and stock transformers reads it.
    """
    _check_no_adapters(model)
    restored = copy.deepcopy(model)
    pruned, original = pruned_heads(model.config), {site.layer: site for site in unpruned_sites(restored)}
    for site in _distinct(attention_sites(restored)):
        full_site, width = original[site.layer], _head_width(restored, site)
        remaining = [head for head in range(full_site.num_heads) if head not in pruned.get(site.layer, ())]
        for module, name, dim, indices in _head_slices(restored, full_site, remaining, width):
            tensor = getattr(module, name).detach()
            shape = list(tensor.shape)
            shape[dim] = shape[dim] // site.num_heads * full_site.num_heads
            padded = tensor.new_zeros(shape)
            padded[(slice(None),) * dim + (indices,)] = tensor
            _replace_tensor(module, name, padded)
        _set_head_count(restored, full_site, width)
    if pruned:
        del restored.config.pruned_heads
    _slice_position_bias(restored)
    return restored


@cache
def _pruning_subclass(family_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def __init__(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        family_class.__init__(self, config, *args, **kwargs)
        # Weights are not loaded yet: parameters are on the meta device, and only their shapes change.
        _remove(self, unpruned_sites(self), pruned_heads(config))
        _slice_position_bias(self)

    # The family's class name: it is written to the config, and transformers looks up its own tables by it.
    names = {
        "__module__": family_class.__module__,
        "__qualname__": family_class.__qualname__,
        "__doc__": family_class.__doc__,
    }
    return type(family_class.__name__, (family_class,), {"__init__": __init__, **names})


def _remove(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Remove these heads from these sites, and update the head counts of the attention modules."""
    _check_prunable(model, sites, heads)
    for site in _distinct(sites):
        remaining = [head for head in range(site.num_heads) if head not in heads.get(site.layer, ())]
        if len(remaining) == site.num_heads:
            continue
        width = _head_width(model, site)
        for module, name, dim, indices in list(_head_slices(model, site, remaining, width)):
            tensor = getattr(module, name).detach()
            _replace_tensor(module, name, tensor[(slice(None),) * dim + (indices,)].contiguous())
        _set_head_count(model, replace(site, num_heads=len(remaining)), width)


def _head_slices(
    model: PreTrainedModel, site: AttentionSite, heads: Sequence[int], width: int
) -> Iterator[tuple[nn.Module, str, int, list[int]]]:
    """Yield all tensors with slices of heads: module, name, dimension, and the indices of these heads along it.

    Buffers are included: I-BERT has a scale per row of its projections.
    """
    for path in site.paths(("query", "key", "value")):
        roles = [role for role in ("query", "key", "value") if getattr(site, role) == path]
        rows = sorted(row for role in roles for row in site.slices(role, heads, width))
        module = model.get_submodule(path)
        yield from ((module, name, 0, rows) for name, _ in _tensors(module))
    indices = site.slices("output", heads, width)
    attention = model.get_submodule(_attention_path(site))
    for attribute in family_of(model.config).per_head_weights:
        weights = getattr(attention, attribute, None)
        if isinstance(weights, Tensor):
            yield attention, attribute, 0, indices
        elif weights is not None:
            yield from ((weights, name, 0, indices) for name, _ in _tensors(weights))
    output = model.get_submodule(site.output)
    yield from ((output, name, 1, indices) for name, tensor in _tensors(output) if tensor.dim() == 2)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _replace_tensor(module: Any, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer, and update the sizes that a linear layer stores."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor)
    if name == "weight":
        module.out_features, module.in_features = tensor.shape


def _set_head_count(model: PreTrainedModel, site: AttentionSite, width: int) -> None:
    """Set the attention module's number of heads, under the name that its family uses."""
    attention: Any = model.get_submodule(_attention_path(site))
    for name in HEAD_COUNT_ATTRIBUTES:
        if hasattr(attention, name):
            setattr(attention, name, site.num_heads)
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = site.num_heads * width


def _attention_path(site: AttentionSite) -> str:
    return site.query.rpartition(".")[0]


def _head_width(model: PreTrainedModel, site: AttentionSite) -> int:
    weight = model.get_submodule(site.output).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1] // site.num_heads


def _distinct(sites: Sequence[AttentionSite]) -> list[AttentionSite]:
    """Return one site per attention module, even if several layers share it."""
    return list({site.output: site for site in sites}.values())


class _SelectBiasHeads:
    """A pre-hook that selects the remaining heads of the shared position bias (B, H, S, S)."""

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, mask, bias, *rest = args
        return (states, mask, bias[:, self.heads], *rest)


def _slice_position_bias(model: PreTrainedModel) -> None:
    """Give each layer of a model with a shared position bias (MPNet) the bias of its remaining heads."""
    if not family_of(model.config).shared_position_bias:
        return
    pruned = pruned_heads(model.config)
    for site in unpruned_sites(model):
        attention = model.get_submodule(_attention_path(site))
        for key, hook in list(attention._forward_pre_hooks.items()):
            if isinstance(hook, _SelectBiasHeads):
                del attention._forward_pre_hooks[key]
        if site.layer in pruned:
            remaining = [head for head in range(site.num_heads) if head not in pruned[site.layer]]
            attention.register_forward_pre_hook(_SelectBiasHeads(remaining))


def _check_no_adapters(model: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError("heads of a model with adapters cannot be pruned; merge the adapters first")


def _check_prunable(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Raise ModelError unless these heads can be removed from these sites."""
    _check_no_adapters(model)
    reason = family_of(model.config).why_not_prunable(model.config)
    if reason and any(heads.values()):
        raise ModelError(f"heads of a '{model.config.model_type}' model can be masked, but not pruned: {reason}")
    unknown = sorted(set(heads) - {site.layer for site in sites})
    if unknown:
        raise ModelError(f"there is no layer {unknown[0]}; layers are 0 to {len(sites) - 1}")
    first: dict[str, AttentionSite] = {}  # by path, the first layer that uses these weights
    for site in sites:
        removed = set(heads.get(site.layer, ()))
        _check_layer(site, removed)
        other = first.setdefault(site.output, site).layer
        if removed != set(heads.get(other, ())):
            raise ModelError(
                f"layers {other} and {site.layer} share their weights, but would lose heads "
                f"{sorted(set(heads.get(other, ())))} and {sorted(removed)}; prune the same heads in both"
            )


def _check_layer(site: AttentionSite, removed: set[int]) -> None:
    """Raise ModelError unless the layer has these heads, keeps at least one, and loses complete key-value groups."""
    unknown = sorted(removed - set(range(site.num_heads)))
    if unknown:
        raise ModelError(f"layer {site.layer} has no head {unknown[0]}; its heads are 0 to {site.num_heads - 1}")
    if len(removed) == site.num_heads:
        raise ModelError(f"layer {site.layer} would lose all its {site.num_heads} heads; keep at least one")
    size = site.num_heads // site.num_key_value_heads
    for head in removed:
        group = range(head - head % size, head - head % size + size)
        if not removed.issuperset(group):
            raise ModelError(
                f"heads {', '.join(map(str, group))} of layer {site.layer} share a key and a value, but only "
                f"{', '.join(str(h) for h in group if h in removed)} would be pruned; name all of them or none"
            )
