"""Logits without each head, where the work that the heads share is done once (prefix reuse).

A head of layer l changes nothing below l, and nothing in l before the output projection. One full pass stores what
each layer was called with and what it returned. Then, layer by layer, the attention of the layer is computed once;
from the output projection on there is one copy of the hidden states per head, without that head; and only the layers
above run on the copies. `finetune.heads.ablation` tests whether this fits a model. The embeddings are
computed for all copies; skipping them saved no measurable time.

    B batch, S tokens, H heads, D head width, E hidden size, C classes, K heads processed together
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.windows import WINDOW_COUNTS
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import AttentionSite
from finetune.models.frozen_encoder import replaced_forward

# Tokens of all copies together in one pass, so that the hidden states of a layer stay in the cache. Measured on BERT
# of width 384: 512 is as fast, 2048 is 20 % slower.
_TOKENS = 1024

Inputs = Mapping[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Linear:
    """A projection with its adapters as one linear map: x @ weight + bias."""

    weight: Tensor  # (in, out)
    bias: Tensor  # (out,)


@dataclass(frozen=True)
class PrefixReuse:
    """A model whose layers below an ablated head are not computed again.

    Attributes:
        outputs: the output projection of each layer, which lets one computation of the attention serve all heads of
            the layer; None: the attention of the layer is computed once per head.
    """

    base: PreTrainedModel
    sites: Sequence[AttentionSite]
    outputs: list[Linear] | None

    def layer_path(self, layer: int) -> str:
        """Return the module path of a layer."""
        base = self.base
        prefix = f"{base.base_model_prefix}." if hasattr(base, base.base_model_prefix) else ""
        return prefix + FAMILIES[base.config.model_type].layer_path(base.config, layer)


@torch.no_grad()
def prefix_reuse(base: PreTrainedModel, sites: Sequence[AttentionSite], *, shared_attention: bool) -> PrefixReuse:
    """Return what `logits_without` needs; it is valid until the weights change.

    Args:
        shared_attention: compute the attention of a layer once for all its heads.
    """
    return PrefixReuse(
        base, sites, [_linear(base.get_submodule(s.output)) for s in sites] if shared_attention else None
    )


def rows_per_batch(sites: Sequence[AttentionSite], tokens: float) -> int:
    """Return how many rows of `tokens` tokens (on average) `logits_without` should get at a time."""
    return max(1, int(_TOKENS / (max(site.num_heads for site in sites) * tokens)))


@torch.no_grad()
def logits_without(
    reuse: PrefixReuse, inputs: Inputs, heads: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits (B, C) with all heads, and for each layer those without each of its heads, (B, H, C).

    Args:
        heads: the heads of each layer to ablate; None: all.
    """
    heads = heads or [range(site.num_heads) for site in reuse.sites]
    stored, full = _full_pass(reuse, inputs)
    heads_per_pass = max(1, 2 * _TOKENS // inputs["input_ids"].numel())
    without = []
    for layer, ablated in enumerate(heads):
        parts = [ablated[start : start + heads_per_pass] for start in range(0, len(ablated), heads_per_pass)]
        passes = [_ablated_pass(reuse, inputs, stored, full, layer, part) for part in parts]
        logits = torch.cat([full.new_empty(0, *full.shape), *passes])  # (H, B, C)
        without.append(logits.transpose(0, 1))
    return full, without


@dataclass
class _StoredPass:
    """The call and the result of each layer in the full pass, first layer first."""

    calls: list[Call] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


def _full_pass(reuse: PrefixReuse, inputs: Inputs) -> tuple[_StoredPass, Tensor]:
    """Return the calls and results of all layers, and the logits (B, C), with all heads."""
    stored, base = _StoredPass(), reuse.base

    def store(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        stored.calls.append((args, kwargs))
        stored.results.append(result)

    with ExitStack() as stack:
        for path in dict.fromkeys(reuse.layer_path(site.layer) for site in reuse.sites):
            handle = base.get_submodule(path).register_forward_hook(store, with_kwargs=True)
            stack.callback(handle.remove)
        logits: Tensor = base(**inputs).logits
    if len(stored.calls) != len(reuse.sites):
        raise ValueError(f"{len(stored.calls)} layers were called, not {len(reuse.sites)}")
    return stored, logits


def _ablated_pass(
    reuse: PrefixReuse, inputs: Inputs, stored: _StoredPass, full: Tensor, layer: int, heads: Sequence[int]
) -> Tensor:
    """Return the logits (K, B, C) without each of some heads of a layer."""
    base = reuse.base
    copies = {name: tensor.repeat(len(heads), *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    layers = _Layers(reuse, stored, layer, heads)
    with ExitStack() as stack:
        for path in dict.fromkeys(reuse.layer_path(site.layer) for site in reuse.sites):
            module = base.get_submodule(path)
            stack.enter_context(replaced_forward(module, partial(layers, module.forward)))
        logits: Tensor = base(**copies).logits  # (K * B, C)
    # Without a head whose output is zero the input of the projection is bit-identical, so the logits must be too.
    # Computed in another batch they would differ by rounding, and such a head would not score exactly 0.
    silent = layers.silent  # (K, B), or (K, W) for rows with several windows, which must all be silent
    if WINDOW_COUNTS in inputs:
        silent = torch.stack([row.all(1) for row in silent.split(inputs[WINDOW_COUNTS].tolist(), 1)], 1)
    without: Tensor = torch.where(silent[..., None], full, logits.unflatten(0, (len(heads), -1)))
    return without


class _Layers:
    """Replaces the forward of all layers during one pass. It counts calls, since ALBERT's layers share a module."""

    def __init__(self, reuse: PrefixReuse, stored: _StoredPass, layer: int, heads: Sequence[int]) -> None:
        self.reuse, self.stored, self.layer, self.heads = reuse, stored, layer, list(heads)
        self.calls = 0
        self.silent = torch.zeros(0)  # (K, B): whether the output of the head is zero for all tokens of the row

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self.calls
        self.calls += 1
        if layer > self.layer:
            return forward(*args, **kwargs)
        if layer < self.layer:  # the states are never read
            return _with_states(self.stored.results[layer], args[0] if args else kwargs["hidden_states"])
        projection = self.reuse.base.get_submodule(self.reuse.sites[layer].output)
        if self.reuse.outputs is not None:
            args, kwargs = self.stored.calls[layer]
            handle = projection.register_forward_hook(self._subtract)
        else:
            args, kwargs = self._on_copies(args, kwargs)
            handle = projection.register_forward_pre_hook(self._zero)
        try:
            result = forward(*args, **kwargs)
        finally:
            handle.remove()
        states: Tensor = result if isinstance(result, Tensor) else result[0]
        return _with_states(result, states.flatten(0, 1) if self.reuse.outputs is not None else states)

    def _on_copies(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call on the copies, with the states that the layer got in the full pass."""
        stored_args, stored_kwargs = self.stored.calls[self.layer]
        states = stored_args[0] if stored_args else stored_kwargs["hidden_states"]
        states = states.repeat(len(self.heads), *[1] * (states.dim() - 1))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    def _subtract(self, module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        """Subtract each head's part from the result of the projection: (B, S, E) becomes (K, B, S, E)."""
        assert self.reuse.outputs is not None
        context, linear = args[0], self.reuse.outputs[self.layer]  # (B, S, H * D)
        num_heads = self.reuse.sites[self.layer].num_heads
        head_outputs = context.unflatten(-1, (num_heads, -1)).movedim(-2, 0)[self.heads]  # (K, B, S, D)
        self.silent = ~head_outputs.flatten(2).any(-1)
        weight = linear.weight.unflatten(0, (num_heads, -1))[self.heads].to(context.dtype)  # (K, D, E)
        removed = torch.bmm(head_outputs.flatten(1, 2), weight)  # (K, B * S, E)
        rest: Tensor = result - removed.unflatten(1, context.shape[:2])
        return rest

    def _zero(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Zero head k in the k-th copy of the input of the projection, (K * B, S, H * D)."""
        num_heads = self.reuse.sites[self.layer].num_heads
        context = args[0].unflatten(0, (len(self.heads), -1)).unflatten(-1, (num_heads, -1)).clone()
        copies, heads = (torch.tensor(part, device=context.device) for part in (range(len(self.heads)), self.heads))
        ablated = copies, slice(None), slice(None), heads
        self.silent = ~context[ablated].flatten(2).any(-1)
        context[ablated] = 0
        return (context.flatten(-2).flatten(0, 1), *args[1:])


def _with_states(result: Any, states: Tensor) -> Any:
    """Return the result of a layer with other hidden states."""
    return states if isinstance(result, Tensor) else (states, *result[1:])


def _linear(module: Any) -> Linear:
    """Return a projection as one linear map, adapters included, from its outputs for zeros and for each unit vector."""
    if isinstance(module, nn.Linear):
        bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
        return Linear(module.weight.t().detach(), bias.detach())
    width, like = int(module.in_features), next(module.parameters())
    with torch.autocast(like.device.type, enabled=False):
        bias = module(like.new_zeros(1, width))
        return Linear(module(torch.eye(width, dtype=like.dtype, device=like.device)) - bias, bias[0])
