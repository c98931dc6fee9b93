"""Prune attention heads: remove their rows and columns, so that matrices become smaller and the model faster.

A head is D rows of the query, key and value projections and D columns of the output projection; `AttentionSite.slices`
returns which. The model keeps its family's forward pass; the attention of a layer without heads is skipped (see
`empty_layers.py`). The config lists the pruned heads as `pruned_heads`, in the numbering of the unpruned model.

    B batch, S tokens, H heads, D head width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.adapted import is_adapter_layer
from finetune.models.architectures import HEAD_COUNT_ATTRIBUTES, family_of
from finetune.models.attention_sites import AttentionSite, attention_sites, unpruned_sites
from finetune.models.empty_layers import skip_attention
from finetune.models.feed_forward_sites import FeedForwardSite
from finetune.models.pruned_config import pruned_heads
from finetune.models.tensor_slices import TensorSlice, columns_of, keep, rows_of, tensors_of

Site = TypeVar("Site", AttentionSite, FeedForwardSite)


def prune_heads(model: PreTrainedModel, heads: Mapping[int, Sequence[int]]) -> None:
    """Prune heads of a transformers classifier in place; may be repeated. A layer may lose all its heads.

    Dtypes and `requires_grad` are kept. Parameters are replaced, so an optimizer must be created afterwards. The
    config's `pruned_heads` then lists all heads that were ever pruned.

    Args:
        heads: heads to prune per layer, in the current numbering of `attention_sites(model)`.

    Raises:
        ModelError: the family cannot be pruned, a layer or head does not exist, layers that share weights would lose
            different heads, only some of the heads that share a key and a value are named, or the model has adapters.
    """
    sites, pruned = attention_sites(model), pruned_heads(model.config)
    original = {site.layer: range(site.num_heads) for site in unpruned_sites(model)}
    remove_heads(model, sites, heads)
    for layer, numbers in heads.items():
        remaining = [head for head in original[layer] if head not in pruned.get(layer, ())]
        pruned[int(layer)] = sorted([*pruned.get(layer, ()), *(remaining[number] for number in set(numbers))])
    if any(pruned.values()):
        model.config.pruned_heads = {layer: numbers for layer, numbers in sorted(pruned.items()) if numbers}
    select_position_bias(model)


def remove_heads(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Remove these heads from these sites, and update the head counts of the attention modules.

    Raises:
        ModelError: as `prune_heads`.
    """
    _check_prunable(model, sites, heads)
    for site in distinct_sites(sites):
        remaining = [head for head in range(site.num_heads) if head not in heads.get(site.layer, ())]
        if len(remaining) == site.num_heads:
            continue
        width = head_width(model, site)
        keep(model, head_slices(model, site, remaining, width))
        set_head_count(model, replace(site, num_heads=len(remaining)), width)
        if not remaining:
            skip_attention(model, attention_path(site), site.output)


def head_slices(model: PreTrainedModel, site: AttentionSite, heads: Sequence[int], width: int) -> list[TensorSlice]:
    """Return the slices of all tensors of an attention that belong to these heads.

    Args:
        width: the head width D.
    """
    slices = []
    for path in site.paths(("query", "key", "value")):
        roles = [role for role in ("query", "key", "value") if getattr(site, role) == path]
        slices += rows_of(model, path, sorted(row for role in roles for row in site.slices(role, heads, width)))
    indices, attention = site.slices("output", heads, width), attention_path(site)
    for attribute in family_of(model.config).per_head_weights:
        weights = getattr(model.get_submodule(attention), attribute, None)
        if isinstance(weights, Tensor):
            slices.append(TensorSlice(attention, attribute, 0, indices))
        elif weights is not None:
            slices += [TensorSlice(f"{attention}.{attribute}", name, 0, indices) for name, _ in tensors_of(weights)]
    return slices + columns_of(model, site.output, indices)


def set_head_count(model: PreTrainedModel, site: AttentionSite, width: int) -> None:
    """Set the attention module's number of heads, under the name that its family uses."""
    attention: Any = model.get_submodule(attention_path(site))
    for name in HEAD_COUNT_ATTRIBUTES:
        if hasattr(attention, name):
            setattr(attention, name, site.num_heads)
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = site.num_heads * width


def attention_path(site: AttentionSite) -> str:
    """Return the path of the module with the query projection."""
    return site.query.rpartition(".")[0]


def head_width(model: nn.Module, site: AttentionSite) -> int:
    """Return the head width D of a layer with heads."""
    weight = model.get_submodule(site.output).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1] // max(1, site.num_heads)


def distinct_sites(sites: Sequence[Site]) -> list[Site]:
    """Return one site per module, even if several layers share it."""
    return list({site.output: site for site in sites}.values())


class _SelectBiasHeads:
    """A pre-hook that selects the remaining heads of the shared position bias (B, H, S, S)."""

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, mask, bias, *rest = args
        return (states, mask, bias[:, self.heads], *rest)


def select_position_bias(model: PreTrainedModel) -> None:
    """Give each layer of a model with a shared position bias (MPNet) the bias of its remaining heads."""
    if not family_of(model.config).shared_position_bias:
        return
    pruned = pruned_heads(model.config)
    for site in unpruned_sites(model):
        attention = model.get_submodule(attention_path(site))
        for key, hook in list(attention._forward_pre_hooks.items()):
            if isinstance(hook, _SelectBiasHeads):
                del attention._forward_pre_hooks[key]
        remaining = [head for head in range(site.num_heads) if head not in pruned.get(site.layer, ())]
        if 0 < len(remaining) < site.num_heads:
            attention.register_forward_pre_hook(_SelectBiasHeads(remaining))


def check_no_adapters(model: nn.Module) -> None:
    """Raise ModelError if the model has adapters."""
    if any(is_adapter_layer(module) for module in model.modules()):
        raise ModelError("a model with adapters cannot be pruned; merge the adapters first")


def check_shared_layers(
    sites: Sequence[AttentionSite] | Sequence[FeedForwardSite], removed: Mapping[int, Sequence[int]], what: str
) -> None:
    """Raise ModelError if a layer does not exist, or layers that share weights would lose different parts.

    Args:
        sites: attention or feed-forward sites.
        what: the name of the parts, for the message.
    """
    unknown = sorted(set(removed) - {site.layer for site in sites})
    if unknown:
        raise ModelError(f"there is no layer {unknown[0]}; layers are 0 to {len(sites) - 1}")
    first: dict[str, int] = {}  # by path, the first layer that uses these weights
    for site in sites:
        other = first.setdefault(site.output, site.layer)
        numbers, others = (sorted(set(removed.get(layer, ()))) for layer in (site.layer, other))
        if numbers != others:
            raise ModelError(
                f"layers {other} and {site.layer} share their weights, but would lose {what} {others!s:.80} and "
                f"{numbers!s:.80}; prune the same {what} in both"
            )


def _check_prunable(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Raise ModelError unless these heads can be removed from these sites."""
    check_no_adapters(model)
    reason = family_of(model.config).why_not_prunable(model.config)
    if reason and any(heads.values()):
        raise ModelError(f"heads of a '{model.config.model_type}' model can be masked, but not pruned: {reason}")
    for site in sites:
        _check_layer(site, set(heads.get(site.layer, ())))
    check_shared_layers(sites, heads, "heads")


def _check_layer(site: AttentionSite, removed: set[int]) -> None:
    """Raise ModelError unless the layer has these heads, and loses complete key-value groups."""
    unknown = sorted(removed - set(range(site.num_heads)))
    if unknown:
        has = f"its heads are 0 to {site.num_heads - 1}" if site.num_heads else "all its heads were removed"
        raise ModelError(f"layer {site.layer} has no head {unknown[0]}; {has}")
    size = site.num_heads // max(1, site.num_key_value_heads)
    for head in removed:
        group = range(head - head % size, head - head % size + size)
        if not removed.issuperset(group):
            raise ModelError(
                f"heads {', '.join(map(str, group))} of layer {site.layer} share a key and a value, but only "
                f"{', '.join(str(h) for h in group if h in removed)} would be pruned; name all of them or none"
            )
