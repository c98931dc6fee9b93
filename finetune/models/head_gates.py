"""Gates on attention heads: one factor per head on what it passes to the output projection.

transformers 5 accepts `head_mask` and ignores it. Here a forward pre-hook on the output projection multiplies each
head's slice of its input by a gate. A gate of 0 equals zeroing the head's columns of that projection; a gate of 1
changes nothing.

    B batch, S tokens, L layers, H heads (of the layer with the most heads), D head width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.windows import repeat_per_window
from finetune.errors import ModelError
from finetune.models.attention_sites import AttentionSite, attention_sites
from finetune.models.precision import rounding_tolerance
from finetune.models.window_pooling import current_window_counts

_NEVER_CALLED = (
    "no gated projection was called: the model did not run, or it was compiled before the gates were set, and "
    "torch.compile does not see hooks that are added later; compile it again under the gates (torch._dynamo.reset())"
)


def max_num_heads(sites: Sequence[AttentionSite]) -> int:
    """Return the number of heads of the layer with the most heads: the width H of every (L, H) table."""
    return max(site.num_heads for site in sites)


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
            last = sites[layer].num_heads - 1
            raise ModelError(f"heads_off: layer {layer} has no head {head}; its heads are 0 to {last}")
        if gates[layer, head] == 0:
            raise ModelError(f"heads_off: head ({layer}, {head}) is given twice; give each head once")
        gates[layer, head] = 0
    with _gate_hooks(base, sites, gates) as hooks:
        yield
    if not any(hook.calls for hook in hooks):
        raise ModelError(_NEVER_CALLED)


@contextmanager
def head_gates(
    base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor, *, check_calls: bool = True
) -> Iterator[None]:
    """Multiply each head's output by its gate inside the block. Nested gates multiply.

    A projection that several layers share (ALBERT) is called once per layer, in the order of the layers, and each
    call gets the gates of its layer.

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
    with _gate_hooks(base, sites, gates) as hooks:
        yield
    if not check_calls:
        return
    passes = [hook.calls / len(hook.sites) for hook in hooks]
    if not any(passes):
        raise ModelError(_NEVER_CALLED)
    if len(set(passes)) != 1 or passes[0] != int(passes[0]):
        raise ModelError(
            f"the gated projections were called {[hook.calls for hook in hooks]} times for "
            f"{[len(hook.sites) for hook in hooks]} layers; gates do not work on this model"
        )


def shared_projection_gated(base: nn.Module, sites: Sequence[AttentionSite]) -> bool:
    """Return whether an output projection that several layers share has gates; then no pass may skip a layer."""
    shared = {path for path, layers in Counter(site.output for site in sites).items() if layers > 1}
    modules = [base.get_submodule(path) for path in shared]
    return any(isinstance(hook, _GateHook) for module in modules for hook in module._forward_pre_hooks.values())


@contextmanager
def _gate_hooks(base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> Iterator[list[_GateHook]]:
    """Put a hook on each output projection inside the block; yield the hooks."""
    layers, heads = len(sites), max_num_heads(sites)
    if gates.shape[-2:] != (layers, heads) or gates.dim() not in (2, 3):
        raise ModelError(
            f"gates have shape {tuple(gates.shape)}; they must be (B, {layers}, {heads}) or ({layers}, {heads})"
        )
    sites_by_path: dict[str, list[AttentionSite]] = {}
    for site in sites:
        sites_by_path.setdefault(site.output, []).append(site)
    # Where LoRA adapts the projection, the path leads to LoRA's wrapper, so the adapter is gated too.
    hooks = {path: _GateHook(base, path_sites, gates) for path, path_sites in sites_by_path.items()}
    handles = [base.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()]

    def restart_counting(module: nn.Module, args: tuple[Any, ...]) -> None:
        for hook in hooks.values():
            hook.next_site = 0  # the previous pass may have failed between two sites

    handles.append(getattr(base, "base_model", base).register_forward_pre_hook(restart_counting))
    try:
        yield list(hooks.values())
    finally:
        for handle in handles:
            handle.remove()


class _GateHook:
    """Forward pre-hook that gates the input of one projection; the k-th call in a forward pass is for the k-th site."""

    def __init__(self, base: nn.Module, sites: Sequence[AttentionSite], gates: Tensor) -> None:
        self.base, self.sites, self.gates, self.calls, self.next_site = base, sites, gates, 0, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args  # (B, S, H * D), or (B, H * D, S)
        site = self.sites[self.next_site]
        self.next_site = (self.next_site + 1) % len(self.sites)
        self.calls += 1
        gate = self.gates[..., site.layer, : site.num_heads].to(states)  # (H,) or (B, H)
        if gate.dim() == 2:  # the windows of a row have its gates
            gate = repeat_per_window(gate, current_window_counts(self.base))
        if site.channels_first:
            gate = gate.reshape(-1, site.num_heads, 1, 1)  # (1 or B, H, 1, 1)
            return ((states.unflatten(1, (site.num_heads, -1)) * gate).flatten(1, 2), *rest)
        token_dims = [1] * (states.dim() - 2)  # none where the input is a plain batch of vectors (B, H * D)
        gate = gate.reshape(-1, *token_dims, site.num_heads, 1)  # (1 or B, 1, H, 1)
        return ((states.unflatten(-1, (site.num_heads, -1)) * gate).flatten(-2), *rest)


@torch.no_grad()
def check_gates(base: nn.Module, sites: Sequence[AttentionSite], inputs: dict[str, Tensor]) -> None:
    """Raise ModelError unless gates of 1 leave the logits of `inputs` unchanged up to rounding.

    A gate of 1 changes no bit of the projection's input, but it changes the memory layout, for which a GPU may choose
    another kernel.
    """
    plain = base(**inputs).logits
    ones = plain.new_ones(len(sites), max_num_heads(sites))
    with head_gates(base, sites, ones):
        gated = base(**inputs).logits
    difference = float((plain - gated).abs().max())
    if not difference <= rounding_tolerance(base, plain):
        raise ModelError(f"gates of 1 changed the logits by {difference:g}; please report this model")
