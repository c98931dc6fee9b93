"""Prune heads and feed-forward neurons to a requested speed: the cheapest sizes by latency, without training.

1. One forward and backward pass over training rows gives the moments of every output projection.
2. Backward elimination gives, per sublayer, which parts remain at each size and what that costs in the logits.
3. Measured latencies and dynamic programming give the sizes with the lowest total cost at the requested speed.
4. The remaining columns of the output projections are refitted by least squares.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from finetune.heads.elimination import Elimination, eliminate, refitted
from finetune.heads.gated_forward import GatedRows
from finetune.heads.latency import Latencies
from finetune.heads.output_moments import OutputMoments, output_moments
from finetune.heads.size_search import cheapest_sizes
from finetune.heads.sublayers import Kept, Sublayer
from finetune.models.classifier import Classifier
from finetune.progress import stage


@dataclass(frozen=True)
class SizeSearch:
    """Everything that is needed to prune a classifier to any speed.

    Attributes:
        classifier: in full size, without adapters.
        moments, eliminations: of each sublayer.
    """

    classifier: Classifier
    parts: Sequence[Sublayer]
    moments: Sequence[OutputMoments]
    eliminations: Sequence[Elimination]
    latencies: Latencies

    def kept_at(self, speedup: float) -> Kept | None:
        """Return the parts that remain at the lowest cost at this speed by the latencies; None: it is unreachable."""
        limit = self.latencies.total / speedup - self.latencies.fixed()
        costs = [elimination.costs for elimination in self.eliminations]
        chosen = cheapest_sizes(costs, self.latencies.by_size, limit)
        if chosen is None:
            return None
        sizes = [part.sizes()[index] for part, index in zip(self.parts, chosen, strict=True)]
        return {
            part: elimination.remaining(size)
            for part, elimination, size in zip(self.parts, self.eliminations, sizes, strict=True)
        }

    def refitted(self, kept: Kept) -> Classifier:
        """Return the classifier in full size with output projections that are refitted to the parts that remain.

        The columns of the other parts are unchanged; they must be removed, or their parts gated. All other weights are
        shared with the original.
        """
        memo = {id(tensor): tensor for tensor in (*self.classifier.base.parameters(), *self.classifier.base.buffers())}
        model = copy.deepcopy(self.classifier.base, memo)
        for part, moments in zip(self.parts, self.moments, strict=True):
            if len(kept[part]) == part.num_parts:
                continue
            projection: Any = model.get_submodule(part.output)
            columns, weight = part.columns(kept[part]), projection.weight.detach().clone()
            weight[:, columns], bias_change = refitted(moments, weight, columns)
            projection.weight = nn.Parameter(weight, projection.weight.requires_grad)
            if projection.bias is not None:
                projection.bias = nn.Parameter(projection.bias.detach() + bias_change, projection.bias.requires_grad)
        return replace(self.classifier, model=model)


def search_sizes(sample: GatedRows, parts: Sequence[Sublayer], latencies: Latencies, seed: int) -> SizeSearch:
    """Return the search for the sizes of the sample's classifier, which must have no adapters.

    Args:
        sample: training rows.
        seed: of the random directions in `output_moments`.
    """
    with stage("measuring heads and neurons"):
        moments = output_moments(sample, parts, seed)
    base, eliminations = sample.classifier.base, []
    with stage("ordering heads and neurons", total=len(parts)) as progress:
        for part, part_moments in zip(parts, moments, strict=True):
            projection: Any = base.get_submodule(part.output)
            eliminations.append(eliminate(part, part_moments, projection.weight))
            progress.advance()
    return SizeSearch(sample.classifier, parts, moments, eliminations, latencies)
