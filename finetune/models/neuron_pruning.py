"""Prune feed-forward neurons: remove their rows and columns, so that matrices become smaller and the model faster.

A neuron is a row of the projection into the neurons, in gated networks one for its value and one for its gate, and a
column of the projection out of them. The order of neurons has no meaning, so the config records only how many remain,
as `feed_forward_sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.empty_layers import skip_projections
from finetune.models.feed_forward_sites import FeedForwardSite, feed_forward_sites
from finetune.models.head_pruning import check_no_adapters, check_shared_layers
from finetune.models.pruned_config import feed_forward_sizes
from finetune.models.tensor_slices import TensorSlice, columns_of, keep, rows_of


def prune_neurons(model: PreTrainedModel, neurons: Mapping[int, Sequence[int]]) -> None:
    """Prune feed-forward neurons of a transformers classifier in place; may be repeated. A layer may lose all of them.

    Dtypes and `requires_grad` are kept. Parameters are replaced, so an optimizer must be created afterwards. The
    config's `feed_forward_sizes` then has the number of remaining neurons of each layer that ever lost some.

    Args:
        neurons: neurons to prune per layer, in the current numbering of `feed_forward_sites(model)`.

    Raises:
        ModelError: the family's neurons cannot be separated, a layer or neuron does not exist, layers that share
            weights would lose different neurons, or the model has adapters.
    """
    if not any(neurons.values()):
        return
    check_no_adapters(model)
    sites, sizes = feed_forward_sites(model), feed_forward_sizes(model.config)
    for site in sites:
        unknown = sorted(set(neurons.get(site.layer, ())) - set(range(site.num_neurons)))
        if unknown:
            has = f"its neurons are 0 to {site.num_neurons - 1}" if site.num_neurons else "all of them were removed"
            raise ModelError(f"layer {site.layer} has no neuron {unknown[0]}; {has}")
    check_shared_layers(sites, neurons, "neurons")
    remaining = {
        site.layer: sorted(set(range(site.num_neurons)) - set(neurons[site.layer]))
        for site in sites
        if neurons.get(site.layer)
    }
    keep_neurons(model, sites, remaining)
    sizes |= {layer: len(numbers) for layer, numbers in remaining.items()}
    model.config.feed_forward_sizes = dict(sorted(sizes.items()))


def resize_feed_forward(model: PreTrainedModel) -> None:
    """Reduce the feed-forward networks of a new model to the sizes in its config.

    Raises:
        ModelError: a layer does not exist or has fewer neurons, or layers that share weights have different sizes.
    """
    sizes = feed_forward_sizes(model.config)
    if not sizes:
        return
    sites = feed_forward_sites(model)
    for site in sites:
        if sizes.get(site.layer, 0) > site.num_neurons:
            raise ModelError(
                f"the config has feed_forward_sizes {sizes[site.layer]} for layer {site.layer}, which has only "
                f"{site.num_neurons} neurons; copy config.json from the run again"
            )
    remaining = {layer: range(size) for layer, size in sizes.items()}
    check_shared_layers(sites, remaining, "neurons")
    keep_neurons(model, sites, remaining)


def keep_neurons(
    model: PreTrainedModel, sites: Sequence[FeedForwardSite], remaining: Mapping[int, Sequence[int]]
) -> None:
    """Remove all neurons but these from the layers that are named."""
    for site in {site.output: site for site in sites if site.layer in remaining}.values():
        numbers = list(remaining[site.layer])
        keep(model, neuron_slices(model, site, numbers))
        if not numbers:
            skip_projections(model, *site.inputs, site.output, parts=site.fused)


def neuron_slices(model: PreTrainedModel, site: FeedForwardSite, neurons: Sequence[int]) -> list[TensorSlice]:
    """Return the slices of all tensors of a feed-forward network that belong to these neurons."""
    rows = [part for path in site.inputs for part in rows_of(model, path, site.rows(neurons))]
    return rows + columns_of(model, site.output, neurons)
