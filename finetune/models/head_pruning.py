"""Cut attention heads out of a model for good: smaller matrices, run by the family's own forward pass.

A head is D rows of the query, key and value projections and D columns of the output projection; `families` knows
which. What was cut out is written in the config as `pruned_heads`, in the numbers of the whole model. Stock
transformers 5 does not read it and refuses the sizes; `classifier_class` gives the class that does.

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
from finetune.models.architectures import AttentionSite, attention_sites, family_of, pruned_heads, whole_sites

_COUNTERS = ("num_attention_heads", "n_heads", "num_heads")


def prune_heads(model: PreTrainedModel, heads: Mapping[int, Sequence[int]]) -> None:
    """Cut heads out of a transformers classifier, in place; may be repeated.

    Dtypes and `requires_grad` stay; an optimizer must be made anew, for the parameters are new ones. The config's
    `pruned_heads` then tells all that was cut out.

    Args:
        heads: by layer, as `attention_sites(model)` numbers them now.

    Raises:
        ModelError: the family's heads cannot be cut out, a layer or head does not exist, a layer would lose all its
            heads, layers that share weights would lose different ones, heads that share a key and a value would
            not go together, or there are adapters in the model.
    """
    sites, lost = attention_sites(model), pruned_heads(model.config)
    whole = {site.layer: range(site.num_heads) for site in whole_sites(model)}
    _cut(model, sites, heads)
    for layer, numbers in heads.items():
        left = [head for head in whole[layer] if head not in lost.get(layer, ())]
        lost[int(layer)] = sorted([*lost.get(layer, ()), *(left[number] for number in set(numbers))])
    if any(lost.values()):
        model.config.pruned_heads = {layer: numbers for layer, numbers in sorted(lost.items()) if numbers}
    _slice_position_bias(model)


def classifier_class(config: Any) -> Any:
    """Return the class whose `from_pretrained` reads a classifier's checkpoint with this config.

    Where heads were cut out, by `prune_heads` or by transformers 4, this is a subclass of the family's class that
    cuts them out of the new model before the weights are loaded; its name, and what it saves, are the family's own.

    Raises:
        ModelError: heads were cut out, and the config is not of a family in transformers.
    """
    if not pruned_heads(config):
        return AutoModelForSequenceClassification
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"the config of a '{config.model_type}' model names pruned heads, which only models whose classifier is "
            "in transformers itself can have; use the whole model"
        )
    return _slicing(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])


def zeroed(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in the sizes of the whole model, the rows and columns of heads that were cut out filled with 0.

    It computes what the pruned model computes, and anything that knows the family reads it.
    """
    _refuse_adapters(model)
    restored = copy.deepcopy(model)
    lost, whole = pruned_heads(model.config), {site.layer: site for site in whole_sites(restored)}
    for site in _distinct(attention_sites(restored)):
        large, width = whole[site.layer], _head_width(restored, site)
        left = [head for head in range(large.num_heads) if head not in lost.get(site.layer, ())]
        for module, name, dim, places in _parts(restored, large, left, width):
            tensor = getattr(module, name).detach()
            shape = list(tensor.shape)
            shape[dim] = shape[dim] // site.num_heads * large.num_heads
            filled = tensor.new_zeros(shape)
            filled[(slice(None),) * dim + (places,)] = tensor
            _put(module, name, filled)
        _count(restored, large, width)
    if lost:
        del restored.config.pruned_heads
    _slice_position_bias(restored)
    return restored


@cache
def _slicing(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def __init__(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        plain.__init__(self, config, *args, **kwargs)
        # Before the weights are loaded: the parameters lie on the meta device, and only their shapes are cut.
        _cut(self, whole_sites(self), pruned_heads(config))
        _slice_position_bias(self)

    # By the plain class's name: it is written to the config, and transformers finds its own tables by it.
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (plain,), {"__init__": __init__, **names})


def _cut(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Cut these heads out of these sites, and set what the attention modules count by."""
    _refuse(model, sites, heads)
    for site in _distinct(sites):
        left = [head for head in range(site.num_heads) if head not in heads.get(site.layer, ())]
        if len(left) == site.num_heads:
            continue
        width = _head_width(model, site)
        for module, name, dim, places in list(_parts(model, site, left, width)):
            tensor = getattr(module, name).detach()
            _put(module, name, tensor[(slice(None),) * dim + (places,)].contiguous())
        _count(model, replace(site, num_heads=len(left)), width)


def _parts(
    model: PreTrainedModel, site: AttentionSite, heads: Sequence[int], width: int
) -> Iterator[tuple[nn.Module, str, int, list[int]]]:
    """Yield where these heads lie: a module, the name of its parameter or buffer, the dimension, the places along it.

    Buffers count: I-BERT holds a scale for each row of its projections.
    """
    for path in site.paths(("query", "key", "value")):
        roles = [role for role in ("query", "key", "value") if getattr(site, role) == path]
        rows = sorted(row for role in roles for row in site.slices(role, heads, width))
        module = model.get_submodule(path)
        yield from ((module, name, 0, rows) for name, _ in _tensors(module))
    by_head = site.slices("output", heads, width)
    attention = model.get_submodule(_attention(site))
    for beside in family_of(model.config).beside:
        found = getattr(attention, beside, None)
        if isinstance(found, Tensor):
            yield attention, beside, 0, by_head
        elif found is not None:
            yield from ((found, name, 0, by_head) for name, _ in _tensors(found))
    output = model.get_submodule(site.output)
    yield from ((output, name, 1, by_head) for name, tensor in _tensors(output) if tensor.dim() == 2)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _put(module: Any, name: str, tensor: Tensor) -> None:
    """Put a parameter's or buffer's new tensor in its place, and set the sizes that a linear map tells."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor)
    if name == "weight":
        module.out_features, module.in_features = tensor.shape


def _count(model: PreTrainedModel, site: AttentionSite, width: int) -> None:
    """Set the head counts that the attention module reshapes by, under the names of its family."""
    attention: Any = model.get_submodule(_attention(site))
    for name in _COUNTERS:
        if hasattr(attention, name):
            setattr(attention, name, site.num_heads)
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = site.num_heads * width


def _attention(site: AttentionSite) -> str:
    return site.query.rpartition(".")[0]


def _head_width(model: PreTrainedModel, site: AttentionSite) -> int:
    weight = model.get_submodule(site.output).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1] // site.num_heads


def _distinct(sites: Sequence[AttentionSite]) -> list[AttentionSite]:
    """Return one site for each attention module, however many layers share it."""
    return list({site.output: site for site in sites}.values())


class _BiasOfHeads:
    """Takes, from the position bias of the whole model's heads (B, H, S, S), that of the heads that are left."""

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, mask, bias, *rest = args
        return (states, mask, bias[:, self.heads], *rest)


def _slice_position_bias(model: PreTrainedModel) -> None:
    """Hand each layer of a model with a shared position bias (MPNet) that of its own heads."""
    if not family_of(model.config).position_bias:
        return
    lost = pruned_heads(model.config)
    for site in whole_sites(model):
        attention = model.get_submodule(_attention(site))
        for key, hook in list(attention._forward_pre_hooks.items()):
            if isinstance(hook, _BiasOfHeads):
                del attention._forward_pre_hooks[key]
        if site.layer in lost:
            left = [head for head in range(site.num_heads) if head not in lost[site.layer]]
            attention.register_forward_pre_hook(_BiasOfHeads(left))


def _refuse_adapters(model: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError("heads cannot be cut out of a model with adapters; merge the adapters first")


def _refuse(model: PreTrainedModel, sites: Sequence[AttentionSite], heads: Mapping[int, Sequence[int]]) -> None:
    """Raise ModelError unless these heads can be cut out of these sites."""
    _refuse_adapters(model)
    kind = model.config.model_type
    reason = family_of(model.config).why_mask_only(model.config)
    if reason and any(heads.values()):
        raise ModelError(f"heads of a '{kind}' model can be gated, not cut out: {reason}")
    unknown = sorted(set(heads) - {site.layer for site in sites})
    if unknown:
        raise ModelError(f"there is no layer {unknown[0]} to cut heads out of; layers are 0 to {len(sites) - 1}")
    first: dict[str, AttentionSite] = {}
    for site in sites:
        cut = set(heads.get(site.layer, ()))
        strange = sorted(cut - set(range(site.num_heads)))
        if strange:
            raise ModelError(
                f"layer {site.layer} has no head {strange[0]} to cut out; its heads are 0 to {site.num_heads - 1}"
            )
        if len(cut) == site.num_heads:
            raise ModelError(f"layer {site.layer} would lose all its {site.num_heads} heads; leave it one")
        size = site.num_heads // site.num_key_value_heads
        for head in cut:
            group = range(head - head % size, head - head % size + size)
            if not cut.issuperset(group):
                raise ModelError(
                    f"heads {', '.join(map(str, group))} of layer {site.layer} share a key and a value, but only "
                    f"{', '.join(str(h) for h in group if h in cut)} would be cut out; name all of them or none"
                )
        other = first.setdefault(site.output, site).layer
        if cut != set(heads.get(other, ())):
            raise ModelError(
                f"layers {other} and {site.layer} share their weights, but would lose heads "
                f"{sorted(set(heads.get(other, ())))} and {sorted(cut)}; cut the same heads out of both"
            )
