"""Logits without each head, where the work that the heads share is done once (prefix reuse).

A head of layer l changes nothing below l, and nothing in l before the output projection. One full pass stores what
each layer was called with and what it returned. Then, layer by layer, the attention of the layer is computed once;
from the output projection on there is one copy of the hidden states per head, without that head; and only the layers
above run on the copies. `finetune.heads.ablation` tests whether this fits a model. The embeddings are
computed for all copies; skipping them saved no measurable time. A set of heads is removed in the same
way: those of its lowest layer at the output projection, those above by gates.

    B batch, W windows (or rows), S tokens, L layers, H heads, D head width, E hidden size, C classes,
    K sets of heads processed together, J heads of a set in its lowest layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.windows import WINDOW_COUNTS, repeat_per_window
from finetune.heads.linear_map import Linear, linear_map
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import AttentionSite
from finetune.models.frozen_encoder import replaced_forward

# Tokens of all copies together in one pass, so that the hidden states of a layer stay in the cache. Measured on BERT
# of width 384: 512 is as fast, 2048 is 20 % slower.
_TOKENS = 1024

Inputs = Mapping[str, Tensor]
HeadSet = Sequence[tuple[int, int]]  # (layer, head) of heads that are removed together
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class PrefixReuse:
    """A model whose layers below an ablated head are not computed again.

    Attributes:
        outputs: the output projection of each layer, which lets one computation of the attention serve all heads of
            the layer; None: it is computed once per head.
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
        base, sites, [linear_map(base.get_submodule(s.output)) for s in sites] if shared_attention else None
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
    sets = [((layer, head),) for layer, ablated in enumerate(heads) for head in ablated]
    full, without = logits_without_sets(reuse, inputs, sets)
    return full, list(without.split([len(ablated) for ablated in heads], 1))


@torch.no_grad()
def logits_without_sets(
    reuse: PrefixReuse, inputs: Inputs, sets: Sequence[HeadSet], gates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C) with all heads, and those without each set of heads, (B, sets, C).

    Args:
        gates: gates of each row, 0 or 1, (B, L, H); None: all 1. The first logits are those with these gates, the
            others those with the gates of one set flipped: heads that are off in a row are switched on.
    """
    if gates is not None:
        gates = repeat_per_window(gates, inputs.get(WINDOW_COUNTS))
    stored, full = _full_pass(reuse, inputs, gates)
    without = full.new_empty(len(full), len(sets), full.shape[-1])
    for numbers in _passes(sets, max(1, 2 * _TOKENS // inputs["input_ids"].numel())):
        layers = _Layers(reuse, stored, [sets[number] for number in numbers], gates)
        without[:, numbers] = _ablated_pass(inputs, full, layers).transpose(0, 1)
    return full, without


def _passes(sets: Sequence[HeadSet], size: int) -> list[list[int]]:
    """Return the numbers of the sets by pass: at most `size` sets with the same lowest layer and equally many heads."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, heads in enumerate(sets):
        lowest = min(layer for layer, _ in heads)
        groups.setdefault((lowest, sum(layer == lowest for layer, _ in heads)), []).append(number)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


@dataclass
class _StoredPass:
    """The call and the result of each layer in the full pass."""

    calls: list[Call] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


def _full_pass(reuse: PrefixReuse, inputs: Inputs, gates: Tensor | None) -> tuple[_StoredPass, Tensor]:
    """Return the calls and results of all layers, and the logits (B, C)."""
    stored = _StoredPass()

    def store(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = len(stored.calls)
        stored.calls.append((args, kwargs))
        with _gated(reuse, layer, None if gates is None else gates[:, layer]):
            stored.results.append(forward(*args, **kwargs))
        return stored.results[layer]

    logits = _logits(reuse, inputs, store)
    if len(stored.calls) != len(reuse.sites):
        raise ValueError(f"{len(stored.calls)} layers were called, not {len(reuse.sites)}")
    return stored, logits


def _logits(reuse: PrefixReuse, inputs: Inputs, layer_call: Callable[..., Any]) -> Tensor:
    """Return the logits where `layer_call` replaces the forward of each layer, which it gets as first argument."""
    base = reuse.base
    with ExitStack() as stack:
        for path in dict.fromkeys(reuse.layer_path(site.layer) for site in reuse.sites):
            module = base.get_submodule(path)
            stack.enter_context(replaced_forward(module, partial(layer_call, module.forward)))
        logits: Tensor = base(**inputs).logits
    return logits


@contextmanager
def _gated(reuse: PrefixReuse, layer: int, gates: Tensor | None) -> Iterator[None]:
    """Multiply the input of the output projection of a layer by gates (W, H) inside the block; None: do nothing."""
    num_heads = reuse.sites[layer].num_heads
    if gates is None or num_heads == 0:  # a layer without heads does not call its projection
        yield
        return

    def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = args[0].unflatten(-1, (num_heads, -1))  # (W, S, H, D)
        token_dims = [1] * (context.dim() - 3)
        gate = gates[:, :num_heads].to(context.dtype).reshape(-1, *token_dims, num_heads, 1)
        return ((context * gate).flatten(-2), *args[1:])

    handle = reuse.base.get_submodule(reuse.sites[layer].output).register_forward_pre_hook(multiply)
    try:
        yield
    finally:
        handle.remove()


def _ablated_pass(inputs: Inputs, full: Tensor, layers: _Layers) -> Tensor:
    """Return the logits (K, B, C) without each of some sets of heads that have the same lowest layer."""
    num_sets = len(layers.sets)
    copies = {name: tensor.repeat(num_sets, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    logits = _logits(layers.reuse, copies, layers)  # (K * B, C)
    # Without heads whose output is zero the input of the projection is bit-identical, so the logits must be too.
    # Computed in another batch they would differ by rounding, and such a head would not score exactly 0.
    silent = layers.silent  # (K, W); the windows of a row must all be silent
    if WINDOW_COUNTS in inputs:
        silent = torch.stack([row.all(1) for row in silent.split(inputs[WINDOW_COUNTS].tolist(), 1)], 1)
    without: Tensor = torch.where(silent[..., None], full, logits.unflatten(0, (num_sets, -1)))
    return without


class _Layers:
    """Replaces the forward of all layers during one pass. It counts calls, since ALBERT's layers share a module."""

    def __init__(self, reuse: PrefixReuse, stored: _StoredPass, sets: Sequence[HeadSet], gates: Tensor | None) -> None:
        self.reuse, self.stored, self.sets, self.gates = reuse, stored, sets, gates
        self.layer = min(layer for layer, _ in sets[0])
        self.heads = [[head for layer, head in heads if layer == self.layer] for heads in sets]  # (K, J)
        self.is_inside = torch.tensor([len(heads) == len(self.heads[0]) for heads in sets])  # no head above
        self.calls, self.context = 0, torch.zeros(0)
        self.silent = torch.zeros(0)  # (K, W): whether the output of all heads of the set is zero for all tokens

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self.calls
        self.calls += 1
        if layer > self.layer:
            with _gated(self.reuse, layer, self._flipped(layer)):
                return forward(*args, **kwargs)
        if layer < self.layer:  # the states are never read
            return _with_states(self.stored.results[layer], _states((args, kwargs)))
        return self._ablated(forward, args, kwargs)

    def _ablated(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of the lowest layer of the sets, without their heads."""
        projection = self.reuse.base.get_submodule(self.reuse.sites[self.layer].output)
        is_shared = self.reuse.outputs is not None
        if is_shared:
            args, kwargs = self.stored.calls[self.layer]
            gates = None if self.gates is None else self.gates[:, self.layer]  # (W, H)
        else:
            args, kwargs = self._on_copies(args, kwargs)
            gates = self._flipped(self.layer)  # (K * W, H)
        with ExitStack() as stack:
            stack.callback(projection.register_forward_pre_hook(self._store_context).remove)
            stack.enter_context(_gated(self.reuse, self.layer, gates))  # its hook runs after the one above
            if is_shared:
                stack.callback(projection.register_forward_hook(self._subtract).remove)
            result = forward(*args, **kwargs)
        states: Tensor = result if isinstance(result, Tensor) else result[0]
        return _with_states(result, states.flatten(0, 1) if is_shared else states)

    def _flipped(self, layer: int) -> Tensor | None:
        """Return the gates of a layer, flipped for the heads of set k in the k-th copy, (K * W, H); None: all 1."""
        flipped = [[head for other, head in heads if other == layer] for heads in self.sets]
        if self.gates is None and not any(flipped):
            return None
        states = _states(self.stored.calls[layer])
        shape = len(states), self.reuse.sites[layer].num_heads
        rows = states.new_ones(shape) if self.gates is None else self.gates[:, layer]
        gates = rows.repeat(len(self.sets), 1, 1)  # (K, W, H)
        for number, heads in enumerate(flipped):
            gates[number][:, heads] = 1 - gates[number][:, heads]
        return gates.flatten(0, 1)

    def _on_copies(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call on the copies, with the states that the layer got in the full pass."""
        states = _states(self.stored.calls[self.layer])
        states = states.repeat(len(self.sets), *[1] * (states.dim() - 1))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    def _store_context(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Store the input of the projection without gates, and which sets are silent."""
        num_heads, num_sets = self.reuse.sites[self.layer].num_heads, len(self.sets)
        context = args[0].unflatten(-1, (num_heads, -1)).movedim(-2, 0)  # (H, W or K * W, S, D)
        if self.reuse.outputs is not None:
            self.context = context[torch.tensor(self.heads, device=context.device)]  # (K, J, W, S, D)
        else:
            copies = context.unflatten(1, (num_sets, -1))  # (H, K, W, S, D)
            self.context = torch.stack([copies[heads, number] for number, heads in enumerate(self.heads)])
        self.silent = ~self.context.flatten(3).any(-1).any(1) & self.is_inside.to(context.device)[:, None]

    def _subtract(self, module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        """Subtract each set's part from the result of the projection, or add it: (W, S, E) becomes (K, W, S, E)."""
        assert self.reuse.outputs is not None
        linear, context = self.reuse.outputs[self.layer], self.context
        num_heads, heads = self.reuse.sites[self.layer].num_heads, torch.tensor(self.heads, device=context.device)
        if self.gates is not None:
            signs = 2 * self.gates[:, self.layer].T[heads] - 1  # (K, J, W): 1 for a head that is on, otherwise -1
            context = context * signs[..., None, None].to(context.dtype)
        weight = linear.weight.unflatten(0, (num_heads, -1))[heads].to(context.dtype)  # (K, J, D, E)
        joined = context.movedim(1, -2).flatten(-2)  # (K, W, S, J * D)
        removed = torch.bmm(joined.flatten(1, 2), weight.flatten(1, 2))  # (K, W * S, E)
        rest: Tensor = result - removed.unflatten(1, context.shape[2:4])
        return rest


def _states(call: Call) -> Tensor:
    """Return the hidden states that a layer is called with."""
    args, kwargs = call
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _with_states(result: Any, states: Tensor) -> Any:
    """Return the result of a layer with other hidden states."""
    return states if isinstance(result, Tensor) else (states, *result[1:])
