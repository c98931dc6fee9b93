"""Gates on attention heads: one factor per head on what it passes to the output projection.

transformers 5 accepts `head_mask` and ignores it. Here a forward pre-hook on the output projection (`gates.py`)
multiplies each head's slice of its input by a gate. A gate of 0 equals zeroing the head's columns of that projection; a
gate of 1 changes nothing.

    B batch, S tokens, L layers, H heads (of the layer with the most heads), D head width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.attention_sites import AttentionSite, attention_sites
from finetune.models.gates import (
    NEVER_CALLED,
    GatedProjection,
    GateHook,
    check_all_called,
    check_gates_of_one,
    gate_hooks,
)


def max_num_heads(sites: Sequence[AttentionSite]) -> int:
    """Return the number of heads of the layer with the most heads: the width H of every (L, H) table."""
    return max((site.num_heads for site in sites), default=0)


def head_mask(sites: Sequence[AttentionSite]) -> np.ndarray:
    """Return which cells of an (L, H) table are heads: layers may differ in their number of heads."""
    counts = np.array([site.num_heads for site in sites])
    mask: np.ndarray = np.arange(max_num_heads(sites)) < counts[:, None]
    return mask


@contextmanager
def heads_off(base: PreTrainedModel, heads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Turn attention heads off for every forward pass inside the block.

    Each of these heads gets a gate of 0, which equals zeroing its columns of the output projection, adapters
    included. Any batch size and both modes (train, eval) work; gradient checkpointing does not. The weights are not
    changed, and the hooks are removed at the end of the block.

    Args:
        base: the transformers model, with its adapters in place (`Classifier.base`).
        heads: (layer, head) pairs, both counted from 0, each at most once.

    Raises:
        ModelError: a layer or head does not exist, or a pair is given twice. After the block: the model did not run
            inside it, or had been compiled before.
    """
    sites = attention_sites(base)
    gates = torch.ones(len(sites), max_num_heads(sites))
    for layer, head in heads:
        if not 0 <= layer < len(sites):
            raise ModelError(f"heads_off: there is no layer {layer}; layers are 0 to {len(sites) - 1}")
        if not 0 <= head < sites[layer].num_heads:
            count = sites[layer].num_heads
            has = f"its heads are 0 to {count - 1}" if count else "all its heads were removed"
            raise ModelError(f"heads_off: layer {layer} has no head {head}; {has}")
        if gates[layer, head] == 0:
            raise ModelError(f"heads_off: head ({layer}, {head}) is given twice; give each head once")
        gates[layer, head] = 0
    with gate_hooks(base, _projections(sites), gates) as hooks:
        yield
    if not any(hook.calls for hook in hooks):
        raise ModelError(NEVER_CALLED)


@contextmanager
def head_gates(
    base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor, *, check_calls: bool = True
) -> Iterator[None]:
    """Multiply each head's output by its gate inside the block. Nested gates multiply.

    Args:
        base: the transformers model, with its adapters in place (`Classifier.base`).
        sites: its attention sites.
        gates: (B, L, H), one gate per example and head, or (L, H) for all examples; may require gradients.
        check_calls: raise at the end of the block unless all layers were called equally often. Set it to False if
            the code in the block may skip layers, which must not happen if layers share a projection, because calls
            are counted (see `shared_projection_gated`).

    Raises:
        ModelError: the shape of the gates does not fit; or, with `check_calls`, the model did not run or a layer was
            not called as often as the others, so that its gates had no effect.
    """
    with gate_hooks(base, _projections(sites), gates) as hooks:
        yield
    if check_calls:
        check_all_called(hooks)


def shared_projection_gated(base: nn.Module, sites: Sequence[AttentionSite]) -> bool:
    """Return whether an output projection that several layers share has gates; then no pass may skip a layer."""
    shared = {path for path, layers in Counter(site.output for site in sites).items() if layers > 1}
    modules = [base.get_submodule(path) for path in shared]
    return any(isinstance(hook, GateHook) for module in modules for hook in module._forward_pre_hooks.values())


def _projections(sites: Sequence[AttentionSite]) -> list[GatedProjection]:
    return [GatedProjection(site.layer, site.output, site.num_heads, site.channels_first) for site in sites]


def check_gates(base: nn.Module, sites: Sequence[AttentionSite], inputs: dict[str, Tensor]) -> None:
    """Raise ModelError unless gates of 1 leave the logits of `inputs` unchanged up to rounding."""
    check_gates_of_one(base, _projections(sites), inputs)
