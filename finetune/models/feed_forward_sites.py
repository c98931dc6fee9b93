"""Where the feed-forward neurons of a model are: one `FeedForwardSite` per layer, with the paths of its projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of


@dataclass(frozen=True)
class FeedForwardSite:
    """The feed-forward network of one layer.

    Attributes:
        num_neurons: number of neurons that the output projection receives; 0 if all were removed.
        inputs: paths of the projections into the neurons.
        output: path of the projection out of them.
        fused: as in `FeedForward`.
    """

    layer: int
    num_neurons: int
    inputs: tuple[str, ...]
    output: str
    fused: int = 1

    def rows(self, neurons: Sequence[int]) -> list[int]:
        """Return the rows of an input projection that belong to these neurons."""
        return [part * self.num_neurons + neuron for part in range(self.fused) for neuron in neurons]


def feed_forward_sites(model: PreTrainedModel) -> list[FeedForwardSite]:
    """Return the feed-forward sites of a transformers classifier (not wrapped by peft), first layer first.

    Removed neurons are not counted, and the remaining neurons are renumbered from 0.

    Raises:
        ModelError: the family is not in the table, its neurons cannot be separated, or the model lacks a module that
            the table names.
    """
    config, family = model.config, family_of(model.config)
    columns = family.feed_forward
    if reason := columns.why_not_prunable(config):
        raise ModelError(f"feed-forward neurons of a '{config.model_type}' model cannot be pruned: {reason}")
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    modules, sites = dict(model.named_modules()), []
    for layer in range(family.num_layers(config)):
        layer_path = prefix + (columns.layer.format(layer=layer) or family.layer_path(config, layer))
        inputs, output = tuple(f"{layer_path}.{path}" for path in columns.inputs), f"{layer_path}.{columns.output}"
        missing = [path for path in (*inputs, output) if path not in modules]
        if missing:
            raise ModelError(f"this '{config.model_type}' model has no module {', '.join(missing)}, but its family has")
        weight = modules[output].weight
        assert isinstance(weight, Tensor)
        sites.append(FeedForwardSite(layer, weight.shape[1], inputs, output, columns.fused))
    return sites


def max_num_neurons(sites: Sequence[FeedForwardSite]) -> int:
    """Return the number of neurons of the widest layer: the width F of every (L, F) table."""
    return max(site.num_neurons for site in sites)
