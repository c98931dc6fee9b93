"""Faster computation on CPUs: kernels for dropout, attention and linear layers, and a memory allocator setting.

Compared with PyTorch's kernels on rows of 25 tokens (width 384, 12 heads, one thread):

- PyTorch's dropout draws a 32-bit random number per value, sequentially: 5.0 ns per value. Here a 64-bit number decides
  eight values: 0.65 ns per value (1.0 ns with four).
- PyTorch's attention with dropout in bfloat16 converts to float32 and back: 5.1 ms forward and backward, against 3.4 ms
  here. Without dropout the backward pass of the fused kernel takes 22 ms.
- Linear layers: see `linear_products`.

    B batch, H heads, S tokens, D head width
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from finetune.models import linear_products
from finetune.models.linear_products import linear

SWITCH = "FINETUNE_CPU_KERNELS"  # an environment variable; 0 turns the kernels off

_STEPS = 2**16  # dropout rates are multiples of 1 / 65,536
_BLOCK = 1024  # values that share one threshold of 8 bits
_MIN_BLOCKS = 32  # smaller tensors take 16 bits per value
# 32-bit numbers in a vector register (AVX-512). It holds twice as many 16-bit numbers, and for rows shorter than that
# torch computes softmax without vectors: over 29 tokens 1.0 ms per layer in bfloat16, against 0.2 ms in float32.
_LANES = 16


class CpuKernels(TorchFunctionMode):
    """Inside this context dropout, attention and linear layers on a CPU use faster kernels, in any model.

    The model itself is not changed. Calls that the kernels do not support, and all calls on a GPU, use PyTorch's
    kernels. Dropout masks are drawn from torch's default generator. With FINETUNE_CPU_KERNELS=0 in the environment,
    nothing is replaced.

    Args:
        functions: the functions of torch to replace; None: all that have a kernel.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]] | None = None) -> None:
        super().__init__()
        used = () if os.environ.get(SWITCH) == "0" else _KERNELS if functions is None else functions
        self._kernels = {function: _KERNELS[function] for function in used}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the kernel for `func` if there is one and it supports the arguments, else `func` itself."""
        kernel = self._kernels.get(func)
        result = None if kernel is None else kernel(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result


def scoring_kernels(model: nn.Module) -> AbstractContextManager[object]:
    """Return the context for a model's forward passes outside of training, with or without gradients.

    Only linear layers have another kernel there; compiled layers have kernels of their own.
    """
    if linear_products.instruction_set() is None or next(model.parameters()).device.type != "cpu":
        return nullcontext()
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return nullcontext() if compiled else CpuKernels([F.linear])


def dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    """Return `values`, each zeroed with probability p and otherwise divided by 1 - p; None if not supported.

    p is rounded to a multiple of 1/65,536 (Srivastava et al. 2014).
    """
    dropped_steps = round(p * _STEPS)
    if (
        not training
        or inplace
        or not 0 < dropped_steps < _STEPS
        or values.device.type != "cpu"
        or not values.is_floating_point()
    ):
        return None
    result: Tensor = _Dropout.apply(values, dropped_steps)  # type: ignore[no-untyped-call]
    return result


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Return softmax(scale * query key^T + mask) value, (B, H, S, D); None if not supported.

    Scores and weights have the dtype of the inputs, as in eager attention; softmax sums in float32. Without gradients
    the result is None, because torch's fused kernel is faster.

    Args:
        query, key, value: (B, H, S, D).
        attn_mask: true (or 0) where a token is attended to, false (or a large negative number) elsewhere; broadcast
            to (B, H, S, S).
        scale: None: 1 / sqrt(D).
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    dropped_steps = round(dropout_p * _STEPS)
    trained_mask = attn_mask is not None and attn_mask.requires_grad  # a learned position bias
    same_shape = (
        query.dim() == 4 and query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype
    )
    if not torch.is_grad_enabled() or is_causal or trained_mask or not same_shape or dropped_steps == _STEPS:
        return None
    if query.device.type != "cpu":
        return None
    result: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale, dropped_steps
    )
    return result


_KERNELS: Mapping[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.dropout: dropout,
    F.scaled_dot_product_attention: attention,
    F.linear: linear,
}


def _keep_mask(values: Tensor, dropped_steps: int) -> Tensor:
    """Return 1 where a value is kept and 0 where it is dropped, in the dtype and shape of `values`.

    Args:
        dropped_steps: the dropout rate times 65,536.
    """
    size = values.numel()
    if size < _MIN_BLOCKS * _BLOCK or dropped_steps >= _STEPS - 256:
        draws = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[:size].view(values.shape)
        return torch.ge(bits, dropped_steps - _STEPS // 2, out=torch.empty(values.shape, dtype=values.dtype))
    # 8 bits per value: each block draws one of the two thresholds next to the rate, so that the rate is exact.
    threshold, rest = divmod(dropped_steps, 256)
    blocks = -(-size // _BLOCK)
    draws = torch.empty(blocks * (_BLOCK // 8) + -(-blocks // 8), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int8)
    raised = bits[blocks * _BLOCK :][:blocks] < rest - 128  # (blocks,), true with probability rest / 256
    thresholds = raised.to(torch.int8).add_(threshold - 128)[:, None]
    mask = torch.empty(blocks, _BLOCK, dtype=values.dtype)
    torch.ge(bits[: blocks * _BLOCK].view(blocks, _BLOCK), thresholds, out=mask)
    return mask.view(-1)[:size].view(values.shape)


def _zero(values: Tensor) -> Tensor:
    """Return the 0 to which `addcmul` adds: it multiplies by mask and scale in one pass, with one rounding."""
    return values.new_zeros(())


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension, in the dtype of `scores`; sums are always in float32."""
    if scores.dtype == torch.bfloat16 and scores.shape[-1] >= _LANES:
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    if weights.dtype == torch.bfloat16 and _LANES <= weights.shape[-1] < 2 * _LANES:
        grad_scores = torch._softmax_backward_data(gradient.float(), weights.float(), -1, torch.float32)
        return grad_scores.to(weights.dtype)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped_steps: int) -> Tensor:
        mask, scale = _keep_mask(values, dropped_steps), _STEPS / (_STEPS - dropped_steps)
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.addcmul(_zero(values), values, mask, value=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.addcmul(_zero(gradient), gradient, mask, value=ctx.scale), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropped_steps: int
    ) -> Tensor:
        """Return the attention output (B, H, S, D), and keep what `backward` needs."""
        b, h, s, d = query.shape
        query, key, value = (part.reshape(b * h, s, d) for part in (query, key, value))
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale).view(b, h, s, s)
        if mask is not None and mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            # A fully masked row must not become NaN, which would spread to every token that attends to it.
            scores.add_(mask.to(scores.dtype).clamp_min(torch.finfo(scores.dtype).min))
        weights = _softmax(scores)
        keep_mask = _keep_mask(weights, dropped_steps) if dropped_steps else None
        dropout_scale = _STEPS / (_STEPS - dropped_steps)
        dropped = weights
        if keep_mask is not None:
            dropped = torch.addcmul(_zero(weights), weights, keep_mask, value=dropout_scale)
        ctx.save_for_backward(query, key, value, weights, keep_mask, dropped)
        ctx.scale, ctx.dropout_scale = scale, dropout_scale
        return torch.bmm(dropped.view(b * h, s, s), value).view(b, h, s, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value for that of the output, (B, H, S, D)."""
        query, key, value, weights, keep_mask, dropped = ctx.saved_tensors
        b, h, s, d = gradient.shape
        gradient = gradient.reshape(b * h, s, d)
        grad_value = torch.bmm(dropped.view(b * h, s, s).transpose(1, 2), gradient)
        grad_weights = torch.bmm(gradient, value.transpose(1, 2)).view(b, h, s, s)
        if keep_mask is not None:
            grad_weights.mul_(keep_mask)
        grad_scores = _softmax_backward(grad_weights, weights).mul_(ctx.scale * ctx.dropout_scale)
        grad_scores = grad_scores.view(b * h, s, s)
        grad_query, grad_key = torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query)
        return *(part.view(b, h, s, d) for part in (grad_query, grad_key, grad_value)), None, None, None


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # constants in glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make the process keep freed memory for its next tensors; return whether the C library supports it.

    By default glibc requests new memory from the system for every tensor above 32 MiB and returns most freed memory
    immediately; the system then provides zeroed pages one by one. Allocating the gradient of a vocabulary of 30,522
    words took 18 ms per step that way, and takes 2 ms from kept memory (measured on a virtual machine). The peak memory
    of the process is the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
