"""In the last layer, compute only what the classification head reads: the first token.

Attention is the last step in which tokens meet. Behind it, in the last layer, each token goes its own way, and a head
that reads the first one needs none of the others. The gradient is the same: what nobody reads has none.

    B batch, S tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.models.architectures import FAMILIES

# Below a layer, the module that states go through next after attention, one token like another: BERT's takes what
# attention found and what it is added to; DistilBERT's, MPNet's and ModernBERT's take their sum.
_BEHIND_ATTENTION = ("attention.output", "sa_layer_norm", "attention.LayerNorm", "mlp_norm")


@contextmanager
def first_token_only(base: PreTrainedModel) -> Iterator[bool]:
    """Within, the last layer keeps only the first token from attention on; yield whether the model allows it.

    That is not concluded from the type, but tried on random rows, with padding: where a head averages all tokens, or a
    layer is shared with others, the other tokens have a gradient, and then all is computed. Hidden states that are
    asked for besides logits lack the other tokens of the last layer.
    """
    compiled = any(each._compiled_call_impl is not None for each in base.modules())  # and would see no hook set later
    module = None if compiled else _behind_last_attention(base)
    if module is None or _cut in module._forward_pre_hooks.values() or not _reads_first_token(base, module):
        yield module is not None and _cut in module._forward_pre_hooks.values()
        return
    handle = module.register_forward_pre_hook(_cut)
    try:
        yield True
    finally:
        handle.remove()


def _behind_last_attention(base: PreTrainedModel) -> nn.Module | None:
    if getattr(base.config, "attention_type", "original_full") != "original_full":
        return None  # BigBird gives its sparse attention up for good once it has seen a row as short as those tried
    family = FAMILIES[base.config.model_type]
    modules = dict(base.base_model.named_modules())
    layer = family.path(base.config, family.num_layers(base.config) - 1)
    found = next((modules[path] for name in _BEHIND_ATTENTION if (path := f"{layer}.{name}") in modules), None)
    return None if isinstance(found, nn.Linear) else found  # the projection alone: the sum behind it is out of reach


def _cut(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep the first token of every (B, S, E)."""
    return tuple(arg[:, :1] if isinstance(arg, Tensor) and arg.dim() == 3 else arg for arg in args)


def _reads_first_token(base: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether logits have no gradient at all by other tokens, and are the same without them."""
    training, device = base.training, next(base.parameters()).device
    ids = torch.randint(base.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(ids)
    seen[1, 5:] = 0
    inputs = {"input_ids": ids.to(device), "attention_mask": seen.to(device)}
    leaves: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        found = [arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
        leaves.extend(arg for arg in found if isinstance(arg, Tensor) and arg.dim() == 3)
        return tuple(found)

    # Not what Accelerate may have put around the forward: rounding to bfloat16 would hide what is looked for.
    forward = partial(type(base).forward, base, **inputs)
    base.eval()
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            with _hook(module, keep):
                whole = forward().logits
            with _hook(module, _cut):
                cut = forward().logits
            # Random weights, since what flows to one logit may cancel against another.
            weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1)).to(whole)
            gradients = torch.autograd.grad((whole * weights).sum(), leaves, allow_unused=True) if leaves else ()
    except (IndexError, RuntimeError, TypeError, ValueError):  # shapes that do not fit together without the others
        return False
    finally:
        base.train(training)
    # A head of zeros tells nothing: no token has a gradient then.
    alone = [g is not None and bool(g[:, :1].any()) and not g[:, 1:].any() for g in gradients]
    return bool(alone) and all(alone) and torch.allclose(whole.float(), cut.float(), rtol=0.03, atol=0.03)


@contextmanager
def _hook(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
