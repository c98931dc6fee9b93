"""The parts that pruning can remove: the heads of each attention, and the neurons of each feed-forward network.

L layers, H heads, F neurons
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedModel

from finetune.models.attention_sites import AttentionSite, attention_sites
from finetune.models.feed_forward_sites import FeedForwardSite, feed_forward_sites
from finetune.models.head_pruning import head_width

Site = TypeVar("Site", AttentionSite, FeedForwardSite)

HEADS, NEURONS = "heads", "neurons"
MAX_NEURON_STEPS = 48  # sizes of a feed-forward network that are considered; 32 of 1,536 neurons are removed at a time


@dataclass(frozen=True)
class Sublayer:
    """An attention or a feed-forward network, of one layer or of several layers that share its weights (ALBERT).

    Its parts can be removed separately. A part is a neuron, a head, or a group of heads that share a key and a value.

    Attributes:
        kind: HEADS or NEURONS.
        output: path of the output projection, whose columns belong to the parts.
        part_size: heads per part; 1 for neurons.
        width: columns of the output projection per part.
        step: parts that are removed at a time.
    """

    kind: str
    layers: tuple[int, ...]
    output: str
    num_parts: int
    part_size: int
    width: int
    step: int

    def sizes(self) -> list[int]:
        """Return the numbers of parts that may remain: all of them, then multiples of the step, down to none."""
        return [self.num_parts, *range((self.num_parts - 1) // self.step * self.step, -1, -self.step)]

    def members(self, parts: Iterable[int]) -> list[int]:
        """Return the heads or neurons in these parts."""
        return [part * self.part_size + member for part in parts for member in range(self.part_size)]

    def columns(self, parts: Iterable[int]) -> list[int]:
        """Return the columns of the output projection that belong to these parts."""
        return [part * self.width + column for part in parts for column in range(self.width)]


def sublayers(model: PreTrainedModel, kinds: Sequence[str] = (HEADS, NEURONS)) -> list[Sublayer]:
    """Return the sublayers of a transformers classifier without adapters, attentions first.

    Raises:
        ModelError: the heads or the neurons of the family cannot be removed.
    """
    result = []
    if HEADS in kinds:
        for sites in _by_output(attention_sites(model)):
            site = sites[0]
            size = site.num_heads // site.num_key_value_heads
            layers = tuple(site.layer for site in sites)
            width = size * head_width(model, site)
            result.append(Sublayer(HEADS, layers, site.output, site.num_key_value_heads, size, width, 1))
    if NEURONS in kinds:
        for networks in _by_output(feed_forward_sites(model)):
            count = networks[0].num_neurons
            layers = tuple(site.layer for site in networks)
            step = -(-count // MAX_NEURON_STEPS)
            result.append(Sublayer(NEURONS, layers, networks[0].output, count, 1, 1, step))
    return result


def _by_output(sites: Sequence[Site]) -> list[list[Site]]:
    """Return the sites with parts, grouped by their output projection."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if (site.num_heads if isinstance(site, AttentionSite) else site.num_neurons) > 0:
            groups.setdefault(site.output, []).append(site)
    return list(groups.values())


Kept = Mapping[Sublayer, Sequence[int]]  # the parts that remain


def removed_members(kept: Kept, kind: str) -> dict[int, list[int]]:
    """Return the heads or the neurons that are removed, by layer, if only the parts in `kept` remain."""
    removed: dict[int, list[int]] = {}
    for sublayer, parts in kept.items():
        gone = sorted(set(range(sublayer.num_parts)) - set(parts))
        if sublayer.kind == kind and gone:
            removed |= {layer: sublayer.members(gone) for layer in sublayer.layers}
    return dict(sorted(removed.items()))
