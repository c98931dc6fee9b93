"""A gate on every attention head: a factor on what the head hands to the output projection.

transformers 5 accepts `head_mask` and ignores it. A gate multiplies the head's slice of the input of the
output projection instead; gate 0 is the same as zeroing the head's columns of that projection, gate 1
changes nothing.

    B batch, S tokens, L layers, H heads, D head width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.families import AttentionSite


@contextmanager
def head_gates(base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> Iterator[None]:
    """Multiply each head's output by its gate while the context lasts.

    Args:
        base: the transformers model, with its adapters in place (`Classifier.base`).
        sites: its attention sites.
        gates: (B, L, H), a gate for each example, or (L, H) for all; may require gradients.

    Raises:
        ModelError: the gates' shape does not fit, or a gated projection was not called as often as the
            others, so that its gates did nothing.
    """
    layers, heads = len(sites), max(site.num_heads for site in sites)
    if gates.shape[-2:] != (layers, heads) or gates.dim() not in (2, 3):
        raise ModelError(
            f"gates have shape {tuple(gates.shape)}; they must be (B, {layers}, {heads}) or ({layers}, {heads})"
        )
    calls = [0] * layers
    # By path: where LoRA adapts the projection, this is LoRA's wrapper, so the adapter is gated too.
    hooks = [
        base.get_submodule(site.output).register_forward_pre_hook(
            partial(_gate_input, site=site, gates=gates, calls=calls)
        )
        for site in sites
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if len(set(calls)) != 1:
        raise ModelError(f"the gated projections were called {calls} times; gates cannot work on this model")


def _gate_input(
    module: nn.Module, args: tuple[Any, ...], *, site: AttentionSite, gates: Tensor, calls: list[int]
) -> tuple[Any, ...]:
    states, *rest = args  # (B, S, H * D)
    calls[site.layer] += 1
    gate = gates[..., site.layer, : site.num_heads].to(states.dtype)  # (H,) or (B, H)
    gate = gate.reshape(-1, 1, site.num_heads, 1)  # (1 or B, 1, H, 1)
    return ((states.unflatten(-1, (site.num_heads, -1)) * gate).flatten(-2), *rest)


@torch.no_grad()
def check_gates(base: nn.Module, sites: Sequence[AttentionSite], inputs: dict[str, Tensor]) -> None:
    """Raise ModelError unless gates of 1 leave the logits of `inputs` as they are, to the bit."""
    plain = base(**inputs).logits
    ones = plain.new_ones(len(sites), max(site.num_heads for site in sites))
    with head_gates(base, sites, ones):
        gated = base(**inputs).logits
    if not plain.equal(gated):
        raise ModelError(
            f"gates of 1 changed the logits by {float((plain - gated).abs().max()):g}; please report this model"
        )
