"""Models of which heads or neurons were pruned: the class that loads them, and their copy in full size."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from finetune.errors import ModelError
from finetune.models.attention_sites import unpruned_sites
from finetune.models.empty_layers import restore_class
from finetune.models.feed_forward_sites import feed_forward_sites
from finetune.models.head_pruning import (
    attention_path,
    check_no_adapters,
    distinct_sites,
    head_slices,
    head_width,
    remove_heads,
    select_position_bias,
    set_head_count,
)
from finetune.models.neuron_pruning import neuron_slices, resize_feed_forward
from finetune.models.pooled_classifier import pooled_class
from finetune.models.pooling import HEAD, pooling_of
from finetune.models.pruned_config import feed_forward_sizes, is_pruned, pruned_heads
from finetune.models.tensor_slices import pad_with_zeros
from finetune.runs.pruned_files import FEED_FORWARD_SIZES, PRUNED_HEADS


def classifier_class(config: Any) -> Any:
    """Return the class whose `from_pretrained` reads a classifier's checkpoint with this config.

    If heads or neurons were pruned, by finetune or by transformers 4, this is a subclass of the family's class that
    prunes the new model before the weights are loaded. If the config has a pooling, the subclass is that of
    `pooled_class`. It has the family's class name.

    Raises:
        ModelError: parts were pruned or the config has a pooling, and it is not of a family in transformers; or the
            config's entries about pruned parts are damaged.
    """
    pruned, is_pooled = is_pruned(config), pooling_of(config) != HEAD
    if not pruned and not is_pooled:
        return AutoModelForSequenceClassification
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        what, fix = (
            ("lists pruned parts", "use the unpruned model") if pruned else ("has a pooling", "set model.pooling: head")
        )
        raise ModelError(
            f"the config of a '{config.model_type}' model {what}, which is supported only for classifiers in "
            f"transformers itself; {fix}"
        )
    family_class = _unpruned_class(config)
    return _pruning_subclass(family_class) if pruned else family_class


def unpruned_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in the sizes of the unpruned model, with zeros for the pruned heads and neurons.

    Its outputs equal those of the pruned model up to rounding, and stock transformers reads it.
    """
    check_no_adapters(model)
    restored = copy.deepcopy(model)
    if not is_pruned(model.config):
        return restored
    config, pruned = restored.config, pruned_heads(model.config)
    for key in (PRUNED_HEADS, FEED_FORWARD_SIZES):
        vars(config).pop(key, None)
    with torch.device("meta"):
        full = _unpruned_class(config)(config)
    for site in distinct_sites([site for site in unpruned_sites(full) if site.layer in pruned]):
        remaining = [head for head in range(site.num_heads) if head not in pruned[site.layer]]
        width = head_width(full, site)
        pad_with_zeros(restored, head_slices(restored, site, remaining, width), full)
        set_head_count(restored, site, width)
        restore_class(restored, attention_path(site), site.output)
    if sizes := feed_forward_sizes(model.config):
        for network in distinct_sites([site for site in feed_forward_sites(full) if site.layer in sizes]):
            pad_with_zeros(restored, neuron_slices(restored, network, range(sizes[network.layer])), full)
            restore_class(restored, *network.inputs, network.output)
    select_position_bias(restored)
    return restored


def _unpruned_class(config: Any) -> Any:
    family_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return family_class if pooling_of(config) == HEAD else pooled_class(family_class)


@cache
def _pruning_subclass(family_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def __init__(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        family_class.__init__(self, config, *args, **kwargs)
        # Weights are not loaded yet: parameters are on the meta device, and only their shapes change.
        remove_heads(self, unpruned_sites(self), pruned_heads(config))
        resize_feed_forward(self)
        select_position_bias(self)

    # The family's class name: it is written to the config, and transformers looks up its own tables by it.
    names = {
        "__module__": family_class.__module__,
        "__qualname__": family_class.__qualname__,
        "__doc__": family_class.__doc__,
    }
    return type(family_class.__name__, (family_class,), {"__init__": __init__, **names})
