"""A gate on every attention head: a factor on what the head hands to the output projection.

transformers 5 accepts `head_mask` and ignores it. A gate multiplies the head's slice of the input of the
output projection instead; gate 0 is the same as zeroing the head's columns of that projection, gate 1
changes nothing.

    B batch, S tokens, L layers, H heads, D head width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.architectures import AttentionSite
from finetune.models.precision import rounding_tolerance


@contextmanager
def head_gates(base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> Iterator[None]:
    """Multiply each head's output by its gate while the context lasts.

    A projection that several layers share (ALBERT) is called once for each of them, in their order, and gets the
    gates of the layer it is called for.

    Args:
        base: the transformers model, with its adapters in place (`Classifier.base`).
        sites: its attention sites.
        gates: (B, L, H), a gate for each example, or (L, H) for all; may require gradients.

    Raises:
        ModelError: the gates' shape does not fit, or the model did not run, or a layer was not called as often as the
            others, so that its gates did nothing.
    """
    with _hooked(base, sites, gates) as hooks:
        yield
    passes = [hook.calls / len(hook.sites) for hook in hooks]
    if not any(passes):
        raise ModelError(
            "no gated projection was called: the model did not run, or it was compiled before the gates were set, "
            "which torch.compile does not see; compile it anew under the gates (torch._dynamo.reset())"
        )
    if len(set(passes)) != 1 or passes[0] != int(passes[0]):
        raise ModelError(
            f"the gated projections were called {[hook.calls for hook in hooks]} times for "
            f"{[len(hook.sites) for hook in hooks]} layers; gates cannot work on this model"
        )


@contextmanager
def removed_heads(base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> Iterator[None]:
    """The same for gates (L, H) under which other measurements are made, gated themselves or skipping layers.

    Gates within gates multiply. Whether each layer is called is not looked at; where layers share a projection,
    no pass may leave a layer out (`counts_layers`).
    """
    with _hooked(base, sites, gates):
        yield


def counts_layers(base: nn.Module, sites: Sequence[AttentionSite]) -> bool:
    """Return whether gates are in place on a projection that layers share: all of these must then be called."""
    shared = {path for path, times in Counter(site.output for site in sites).items() if times > 1}
    modules = [base.get_submodule(path) for path in shared]
    return any(isinstance(hook, _GateHook) for module in modules for hook in module._forward_pre_hooks.values())


@contextmanager
def _hooked(base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> Iterator[list[_GateHook]]:
    layers, heads = len(sites), max(site.num_heads for site in sites)
    if gates.shape[-2:] != (layers, heads) or gates.dim() not in (2, 3):
        raise ModelError(
            f"gates have shape {tuple(gates.shape)}; they must be (B, {layers}, {heads}) or ({layers}, {heads})"
        )
    shared: dict[str, list[AttentionSite]] = {}
    for site in sites:
        shared.setdefault(site.output, []).append(site)
    # By path: where LoRA adapts the projection, this is LoRA's wrapper, so the adapter is gated too.
    hooks = {path: _GateHook(called, gates) for path, called in shared.items()}
    handles = [base.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()]
    try:
        yield list(hooks.values())
    finally:
        for handle in handles:
            handle.remove()


class _GateHook:
    """Gates one projection's input; the k-th call of a forward pass is that of its k-th site."""

    def __init__(self, sites: Sequence[AttentionSite], gates: Tensor) -> None:
        self.sites, self.gates, self.calls = sites, gates, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args  # (B, S, H * D), or (B, H * D, S)
        site = self.sites[self.calls % len(self.sites)]
        self.calls += 1
        gate = self.gates[..., site.layer, : site.num_heads].to(states.dtype)  # (H,) or (B, H)
        if site.channels_first:
            gate = gate.reshape(-1, site.num_heads, 1, 1)  # (1 or B, H, 1, 1)
            return ((states.unflatten(1, (site.num_heads, -1)) * gate).flatten(1, 2), *rest)
        between = [1] * (states.dim() - 2)  # none where a projection is handed the unit vectors to read it off
        gate = gate.reshape(-1, *between, site.num_heads, 1)  # (1 or B, 1, H, 1)
        return ((states.unflatten(-1, (site.num_heads, -1)) * gate).flatten(-2), *rest)


@torch.no_grad()
def check_gates(base: nn.Module, sites: Sequence[AttentionSite], inputs: dict[str, Tensor]) -> None:
    """Raise ModelError unless gates of 1 leave the logits of `inputs` as they are.

    A gate of 1 changes no bit of what the projection gets, but lays it out anew in memory, for which a GPU may choose
    another kernel: rounding is allowed for.
    """
    plain = base(**inputs).logits
    ones = plain.new_ones(len(sites), max(site.num_heads for site in sites))
    with head_gates(base, sites, ones):
        gated = base(**inputs).logits
    difference = float((plain - gated).abs().max())
    if not difference <= rounding_tolerance(base, plain):
        raise ModelError(f"gates of 1 changed the logits by {difference:g}; please report this model")
