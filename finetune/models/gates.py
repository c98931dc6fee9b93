"""Gates on the input of projections: what gates on attention heads and on feed-forward neurons have in common.

A forward pre-hook multiplies each part of a projection's input (the outputs of a head, or of a neuron) by its gate.

    B batch, S tokens, L layers, P parts (of the layer with the most parts), D width of a part
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.windows import repeat_per_window
from finetune.errors import ModelError
from finetune.models.packing import current_packing
from finetune.models.precision import rounding_tolerance
from finetune.models.window_pooling import current_window_counts

NEVER_CALLED = (
    "no gated projection was called: the model did not run, or it was compiled before the gates were set, and "
    "torch.compile does not see hooks that are added later; compile it again under the gates (torch._dynamo.reset())"
)


@dataclass(frozen=True)
class GatedProjection:
    """A projection whose input consists of parts with a gate each, in one layer.

    Attributes:
        path: of the projection.
        parts: number of parts; 0: the layer has none, and its gates have no effect.
        channels_first: its input is (B, P * D, S) instead of (B, S, P * D).
    """

    layer: int
    path: str
    parts: int
    channels_first: bool = False


@contextmanager
def gate_hooks(base: nn.Module, projections: Sequence[GatedProjection], gates: Tensor) -> Iterator[list[GateHook]]:
    """Put a hook on each projection inside the block; yield the hooks.

    A projection that several layers share (ALBERT) is called once per layer, in the order of the layers, and each call
    gets the gates of its layer.

    Args:
        gates: (B, L, P), one gate per example and part, or (L, P) for all examples; may require gradients.

    Raises:
        ModelError: the shape of the gates does not fit.
    """
    layers, parts = len(projections), max((projection.parts for projection in projections), default=0)
    if gates.shape[-2:] != (layers, parts) or gates.dim() not in (2, 3):
        raise ModelError(
            f"gates have shape {tuple(gates.shape)}; they must be (B, {layers}, {parts}) or ({layers}, {parts})"
        )
    by_path: dict[str, list[GatedProjection]] = {}
    for projection in projections:
        by_path.setdefault(projection.path, []).append(projection)
    # Where LoRA adapts the projection, the path leads to LoRA's wrapper, so the adapter is gated too.
    hooks = {path: GateHook(base, shared, gates) for path, shared in by_path.items()}
    handles = [base.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()]

    def restart_counting(module: nn.Module, args: tuple[Any, ...]) -> None:
        for hook in hooks.values():
            hook.next_call = 0  # the previous pass may have failed between two layers

    handles.append(getattr(base, "base_model", base).register_forward_pre_hook(restart_counting))
    try:
        yield list(hooks.values())
    finally:
        for handle in handles:
            handle.remove()


def check_all_called(hooks: Sequence[GateHook]) -> None:
    """Raise ModelError unless the model ran under the hooks, and all layers were called equally often."""
    passes = [hook.calls / len(hook.projections) for hook in hooks]
    if not any(passes):
        raise ModelError(NEVER_CALLED)
    if len(set(passes)) != 1 or passes[0] != int(passes[0]):
        raise ModelError(
            f"the gated projections were called {[hook.calls for hook in hooks]} times for "
            f"{[len(hook.projections) for hook in hooks]} layers; gates do not work on this model"
        )


@torch.no_grad()
def check_gates_of_one(base: nn.Module, projections: Sequence[GatedProjection], inputs: dict[str, Tensor]) -> None:
    """Raise ModelError unless gates of 1 leave the logits of `inputs` unchanged up to rounding.

    A gate of 1 changes no bit of the projection's input, but it changes the memory layout, for which a GPU may choose
    another kernel.
    """
    plain = base(**inputs).logits
    ones = plain.new_ones(len(projections), max((projection.parts for projection in projections), default=0))
    with gate_hooks(base, projections, ones) as hooks:
        gated = base(**inputs).logits
    check_all_called(hooks)
    difference = float((plain - gated).abs().max())
    if not difference <= rounding_tolerance(base, plain):
        raise ModelError(f"gates of 1 changed the logits by {difference:g}; please report this model")


class GateHook:
    """Gates the input of one projection before its forward pass; the k-th call in a pass is for the k-th layer."""

    def __init__(self, base: nn.Module, projections: Sequence[GatedProjection], gates: Tensor) -> None:
        self.base, self.projections, self.gates = base, projections, gates
        self.calls, self.next_call = 0, 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with gated states."""
        states, *rest = args  # (B, S, P * D), or (B, P * D, S)
        projection = self.projections[self.next_call]
        self.next_call = (self.next_call + 1) % len(self.projections)
        self.calls += 1
        if projection.parts == 0:
            return args
        gate = self.gates[..., projection.layer, : projection.parts].to(states)  # (P,) or (B, P)
        packing = current_packing(self.base)
        if gate.dim() == 2:  # the windows of a row have its gates
            gate = repeat_per_window(gate, current_window_counts(self.base))
        if gate.dim() == 2 and packing is not None:  # the tokens of all rows are one sequence
            gate = packing.repeat_per_token(gate, states.shape[1])  # (T, P)
            return ((states.unflatten(-1, (projection.parts, -1)) * gate.unsqueeze(-1)).flatten(-2), *rest)
        if projection.channels_first:
            gate = gate.reshape(-1, projection.parts, 1, 1)  # (1 or B, P, 1, 1)
            return ((states.unflatten(1, (projection.parts, -1)) * gate).flatten(1, 2), *rest)
        token_dims = [1] * (states.dim() - 2)  # none where the input is a plain batch of vectors (B, P * D)
        gate = gate.reshape(-1, *token_dims, projection.parts, 1)  # (1 or B, 1, P, 1)
        return ((states.unflatten(-1, (projection.parts, -1)) * gate).flatten(-2), *rest)
