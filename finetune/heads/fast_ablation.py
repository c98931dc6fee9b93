"""Logits without each head, with what many of them share computed once.

A head of layer l changes nothing below l, and in l nothing before the output projection. So one pass keeps what
each layer was called with; then, layer by layer, the layer's attention is computed once, from the output
projection on there is a copy of the states for each head, without that head, and only the layers above run on the
copies. Which of the savings fit a model is not concluded from its type: `finetune.heads.ablation` tries them. The
embeddings are computed for all copies: doing without saved nothing that could be measured.

    B batch, S tokens, L layers, H heads, D head width, E hidden size, C classes, K heads taken at a time
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import AttentionSite
from finetune.models.frozen_encoder import replaced_forward

OWN_ATTENTION = "own attention"  # a layer's attention once for all its heads
FIRST_TOKEN = "first token"  # in the last layer only what the first position needs
SAVINGS = (OWN_ATTENTION, FIRST_TOKEN)
# Tokens of all copies together in a pass, so that a layer's states stay in the cache. Measured on BERT of width 384:
# 512 is as fast, 2048 a fifth slower.
_TOKENS = 1024

Inputs = Mapping[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Linear:
    """What a projection, adapters and all, does to its input x: x @ weight + bias."""

    weight: Tensor  # (in, out)
    bias: Tensor  # (out,)


@dataclass(frozen=True)
class Shortcut:
    """A model, the savings that fit it, and what they need to know of its projections.

    Attributes:
        outputs: the output projection of each layer, if `OWN_ATTENTION` is among the savings.
        last: key and value projection of the last layer, if `FIRST_TOKEN` is.
    """

    base: PreTrainedModel
    sites: Sequence[AttentionSite]
    savings: frozenset[str]
    outputs: list[Linear]
    last: list[Linear]

    def path(self, layer: int) -> str:
        """Return the path of one layer."""
        base = self.base
        prefix = f"{base.base_model_prefix}." if hasattr(base, base.base_model_prefix) else ""
        return prefix + FAMILIES[base.config.model_type].layer_path(base.config, layer)


@torch.no_grad()
def take_shortcut(base: PreTrainedModel, sites: Sequence[AttentionSite], savings: frozenset[str]) -> Shortcut:
    """Return what `logits_without` needs; it holds for the weights of now."""
    outputs = [base.get_submodule(site.output) for site in sites] if OWN_ATTENTION in savings else []
    last = [base.get_submodule(path) for path in (sites[-1].key, sites[-1].value)] if FIRST_TOKEN in savings else []
    return Shortcut(base, sites, savings, [_linear(module) for module in outputs], [_linear(module) for module in last])


def rows_at_a_time(sites: Sequence[AttentionSite], tokens: float) -> int:
    """Return how many rows of so many tokens, on average, to hand to `logits_without`."""
    return max(1, int(_TOKENS / (max(site.num_heads for site in sites) * tokens)))


@torch.no_grad()
def logits_without(
    shortcut: Shortcut, inputs: Inputs, heads: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits (B, C) of the whole model, and for each layer those without each of its heads, (B, H, C).

    Args:
        heads: for each layer the heads to leave out; None: all.
    """
    heads = heads or [range(site.num_heads) for site in shortcut.sites]
    kept, whole = _full_pass(shortcut, inputs)
    tokens = inputs["input_ids"].numel()
    at_once = max(1, 2 * _TOKENS // tokens)
    without = []
    for layer, left_out in enumerate(heads):
        parts = [left_out[start : start + at_once] for start in range(0, len(left_out), at_once)]
        logits = torch.cat([_pass(shortcut, inputs, kept, whole, layer, part) for part in parts])  # (H, B, C)
        without.append(logits.transpose(0, 1))
    return whole, without


@dataclass
class _Kept:
    """What the full pass leaves: each layer's call and result, first layer first."""

    calls: list[Call] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


def _full_pass(shortcut: Shortcut, inputs: Inputs) -> tuple[_Kept, Tensor]:
    kept, base = _Kept(), shortcut.base

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        kept.calls.append((args, kwargs))
        kept.results.append(result)

    with ExitStack() as stack:
        for path in dict.fromkeys(shortcut.path(site.layer) for site in shortcut.sites):
            handle = base.get_submodule(path).register_forward_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        whole: Tensor = base(**inputs).logits
    if len(kept.calls) != len(shortcut.sites):
        raise ValueError(f"{len(kept.calls)} layers were called, not {len(shortcut.sites)}")
    return kept, whole


def _pass(shortcut: Shortcut, inputs: Inputs, kept: _Kept, whole: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
    """Return the logits (K, B, C) without each of some heads of a layer."""
    base, path = shortcut.base, shortcut.path
    copies = {name: tensor.repeat(len(heads), *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    layers = _Layers(shortcut, kept, layer, heads)
    with ExitStack() as stack:
        for site in {path(site.layer): site for site in shortcut.sites}.values():
            module = base.get_submodule(path(site.layer))
            stack.enter_context(replaced_forward(module, partial(layers, module.forward)))
        if FIRST_TOKEN in shortcut.savings:
            attention = base.get_submodule(f"{path(len(shortcut.sites) - 1)}.attention")
            stack.enter_context(_first_token(attention, shortcut.sites[-1].num_heads, *shortcut.last))
        logits: Tensor = base(**copies).logits  # (K * B, C)
    # What the projection got is then the same to the bit, so the logits are; computed in other batches they
    # would differ by rounding, and a head that does nothing would not measure 0.
    without: Tensor = torch.where(layers.idle[..., None], whole, logits.unflatten(0, (len(heads), -1)))
    return without


class _Layers:
    """Stands in for the forward of the layers during one pass; counts calls, as ALBERT's layers share a module."""

    def __init__(self, shortcut: Shortcut, kept: _Kept, layer: int, heads: Sequence[int]) -> None:
        self.shortcut, self.kept, self.layer, self.heads = shortcut, kept, layer, list(heads)
        self.called = 0
        self.idle = torch.zeros(0)  # (K, B): the head handed nothing on

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = self.called
        self.called += 1
        if number > self.layer:
            return forward(*args, **kwargs)
        result = self.kept.results[number]
        if number < self.layer:  # nobody looks at these states
            return _with_states(result, args[0] if args else kwargs["hidden_states"])
        site = self.shortcut.sites[number]
        projection = self.shortcut.base.get_submodule(site.output)
        if OWN_ATTENTION in self.shortcut.savings:
            args, kwargs = self.kept.calls[number]
            handle = projection.register_forward_hook(self._subtract)
        else:
            args, kwargs = self._copied(args, kwargs)
            handle = projection.register_forward_pre_hook(self._zero)
        try:
            result = forward(*args, **kwargs)
        finally:
            handle.remove()
        states: Tensor = result if isinstance(result, Tensor) else result[0]
        return _with_states(result, states.flatten(0, 1) if OWN_ATTENTION in self.shortcut.savings else states)

    def _copied(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call on the copies with the states that the layer got in the full pass."""
        kept_args, kept_kwargs = self.kept.calls[self.layer]
        states = kept_args[0] if kept_args else kept_kwargs["hidden_states"]
        states = states.repeat(len(self.heads), *[1] * (states.dim() - 1))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    def _subtract(self, module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        """Take each head's share off the projection's result: (B, S, E) becomes (K, B, S, E)."""
        context, linear = args[0], self.shortcut.outputs[self.layer]  # (B, S, H * D)
        num_heads = self.shortcut.sites[self.layer].num_heads
        share = context.unflatten(-1, (num_heads, -1)).movedim(-2, 0)[self.heads]  # (K, B, S, D)
        self.idle = ~share.flatten(2).any(-1)
        weight = linear.weight.unflatten(0, (num_heads, -1))[self.heads].to(context.dtype)  # (K, D, E)
        removed = torch.bmm(share.flatten(1, 2), weight)  # (K, B * S, E)
        rest: Tensor = result - removed.unflatten(1, context.shape[:2])
        return rest

    def _zero(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Zero head k of the k-th copy in what the projection gets, (K * B, S, H * D)."""
        num_heads = self.shortcut.sites[self.layer].num_heads
        context = args[0].unflatten(0, (len(self.heads), -1)).unflatten(-1, (num_heads, -1)).clone()
        copies, heads = (torch.tensor(part, device=context.device) for part in (range(len(self.heads)), self.heads))
        own = copies, slice(None), slice(None), heads
        self.idle = ~context[own].flatten(2).any(-1)
        context[own] = 0
        return (context.flatten(-2).flatten(0, 1), *args[1:])


def _with_states(result: Any, states: Tensor) -> Any:
    return states if isinstance(result, Tensor) else (states, *result[1:])


@contextmanager
def _first_token(attention: nn.Module, num_heads: int, key: Linear, value: Linear) -> Iterator[None]:
    """Let BERT's attention find the first token's new state only, and use it to add the first token's residual.

    With one query a head, keys and values need no projection of their own: q . (W_K x_s) = (W_K^T q) . x_s, and
    sum_s a_s (W_V x_s + b_V) = W_V (sum_s a_s x_s) + b_V. A key's bias adds the same to all scores: softmax drops it.
    """
    inner: Any = attention.get_submodule("self")
    if [*inspect.signature(inner.forward).parameters][:2] != ["hidden_states", "attention_mask"]:
        raise TypeError("an attention that is called otherwise")
    scaling = getattr(inner, "scaling", None) or float(inner.attention_head_size) ** -0.5
    query = inner.get_submodule("query")

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **ignored: Any) -> tuple[Tensor, None]:
        keys, values = (m.weight.unflatten(1, (num_heads, -1)).to(hidden_states.dtype) for m in (key, value))
        asked = query(hidden_states[:, 0]).unflatten(-1, (num_heads, -1)) * scaling  # (B, H, D)
        asked = torch.einsum("bhd,ehd->bhe", asked, keys)
        scores = (asked @ hidden_states.transpose(1, 2)).float()  # (B, H, S)
        if attention_mask is not None:
            mask = attention_mask[:, :, 0]  # (B, 1, S)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        mixed = scores.softmax(-1).to(hidden_states.dtype) @ hidden_states  # (B, H, E)
        context = torch.einsum("bhe,ehd->bhd", mixed, values).flatten(1) + value.bias.to(hidden_states.dtype)
        return context.unsqueeze(1), None  # (B, 1, H * D)

    def cut(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context, residual = args
        return context, residual[:, :1]

    handle = attention.get_submodule("output").register_forward_pre_hook(cut)
    try:
        with replaced_forward(inner, forward):
            yield
    finally:
        handle.remove()


def _linear(module: Any) -> Linear:
    """Return what a linear map does, read off what it makes of zeros and of each unit vector."""
    if isinstance(module, nn.Linear):
        bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
        return Linear(module.weight.t().detach(), bias.detach())
    width, like = int(module.in_features), next(module.parameters())
    with torch.autocast(like.device.type, enabled=False):
        bias = module(like.new_zeros(1, width))
        return Linear(module(torch.eye(width, dtype=like.dtype, device=like.device)) - bias, bias[0])
