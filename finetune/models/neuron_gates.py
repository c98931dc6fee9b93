"""Gates on feed-forward neurons: one factor per neuron on what it passes to the output projection.

A gate of 0 equals zeroing the neuron's column of that projection; a gate of 1 changes nothing.

    B batch, L layers, F neurons (of the widest layer)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from finetune.models.feed_forward_sites import FeedForwardSite
from finetune.models.gates import GatedProjection, check_all_called, gate_hooks


@contextmanager
def neuron_gates(
    base: nn.Module, sites: Sequence[FeedForwardSite], gates: Tensor, *, check_calls: bool = True
) -> Iterator[None]:
    """Multiply each neuron's output by its gate inside the block. Nested gates multiply, also with gates on heads.

    Args:
        base: the transformers model, with its adapters in place (`Classifier.base`).
        sites: its feed-forward sites.
        gates: (B, L, F), one gate per example and neuron, or (L, F) for all examples; may require gradients.
        check_calls: raise at the end of the block unless all layers were called equally often. Set it to False if the
            code in the block may skip layers, which must not happen if layers share a projection.

    Raises:
        ModelError: the shape of the gates does not fit; or, with `check_calls`, the model did not run or a layer was
            not called as often as the others, so that its gates had no effect.
    """
    with gate_hooks(base, _projections(sites), gates) as hooks:
        yield
    if check_calls:
        check_all_called(hooks)


def _projections(sites: Sequence[FeedForwardSite]) -> list[GatedProjection]:
    return [GatedProjection(site.layer, site.output, site.num_neurons) for site in sites]
