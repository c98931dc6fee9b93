"""Dropout and attention for training on a CPU, where PyTorch's own take the most time for the least arithmetic.

Measured on rows of 25 tokens (width 384, 12 heads, one thread):

- dropout draws one number of 32 bits for each value, one after the other: 5.0 ns a value, against 1.1 ns here, where
  one draw of 64 bits decides four values;
- attention with dropout, in bfloat16, goes through float32 and back: 5.1 ms forward and backward, against 3.4 ms here;
  without dropout the fused kernel's backward pass takes 22 ms.

    B batch, H heads, S tokens, D head width
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_STEPS = 2**16  # a rate is a multiple of 1 / 65,536
# Numbers of 32 bits in a vector register (AVX-512). Of 16 bits it holds twice as many, and where a row has fewer than
# that, torch computes softmax one by one: over 29 tokens 1.0 ms a layer in bfloat16, against 0.2 ms through float32.
_LANES = 16


class CpuKernels(TorchFunctionMode):
    """While this context is open, dropout and attention on a CPU are those of this module, in any model.

    Nothing is put into the model, so nothing has to be taken out. Only calls that these kernels can do are taken; all
    others, and all on a GPU, go where they went. Masks are drawn from torch's own generator.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call what `func` stands for."""
        kernel = _KERNELS.get(func)
        found = None if kernel is None else kernel(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found


def dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    """Return `values` with a share p of them zeroed and the others divided by 1 - p; None where torch must do it.

    p is rounded to a multiple of 1/65,536. Srivastava et al. 2014.
    """
    cut = round(p * _STEPS)
    if not training or inplace or not 0 < cut < _STEPS or values.device.type != "cpu" or not values.is_floating_point():
        return None
    dropped: Tensor = _Dropout.apply(values, cut)  # type: ignore[no-untyped-call]
    return dropped


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
    """Return softmax(scale * query key^T + mask) value, (B, H, S, D); None where torch must do it.

    Scores and weights have the dtype of the inputs, as in eager attention; softmax sums in float32. Where no gradient
    is asked for, torch's fused kernel is the better one.

    Args:
        query, key, value: (B, H, S, D).
        attn_mask: true (or 0) where a token is seen, false (or a large negative number) elsewhere; broadcast to
            (B, H, S, S).
        scale: None: 1 / sqrt(D).
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    cut = round(dropout_p * _STEPS)
    grown = attn_mask is not None and attn_mask.requires_grad  # a learned position bias
    alike = query.dim() == 4 and query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype
    if not torch.is_grad_enabled() or is_causal or grown or not alike or cut == _STEPS or query.device.type != "cpu":
        return None
    found: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale, cut
    )
    return found


_KERNELS: Mapping[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.dropout: dropout,
    F.scaled_dot_product_attention: attention,
}


def _kept(values: Tensor, cut: int) -> Tensor:
    """Return 1 where a value is kept and 0 where it is dropped, in the dtype and shape of `values`."""
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: values.numel()].view(values.shape)
    return torch.ge(bits, cut - _STEPS // 2, out=torch.empty(values.shape, dtype=values.dtype))


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension, in the dtype of `scores`; sums are in float32 in any case."""
    if scores.dtype == torch.bfloat16 and scores.shape[-1] >= _LANES:
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    if weights.dtype == torch.bfloat16 and _LANES <= weights.shape[-1] < 2 * _LANES:
        given, known = gradient.float(), weights.float()
        return torch._softmax_backward_data(given, known, -1, torch.float32).to(weights.dtype)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cut: int) -> Tensor:
        kept, scale = _kept(values, cut), _STEPS / (_STEPS - cut)
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (values * kept).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cut: int
    ) -> Tensor:
        b, h, s, d = query.shape
        query, key, value = (part.reshape(b * h, s, d) for part in (query, key, value))
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale).view(b, h, s, s)
        if mask is not None and mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            # A row that sees nothing must not become NaN, which would spread to all that look at it.
            scores.add_(mask.to(scores.dtype).clamp_min(torch.finfo(scores.dtype).min))
        weights = _softmax(scores)
        kept = _kept(weights, cut) if cut else None
        growth = _STEPS / (_STEPS - cut)
        used = weights if kept is None else (weights * kept).mul_(growth)
        ctx.save_for_backward(query, key, value, weights, kept, used)
        ctx.scale, ctx.growth = scale, growth
        return torch.bmm(used.view(b * h, s, s), value).view(b, h, s, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept, used = ctx.saved_tensors
        b, h, s, d = gradient.shape
        gradient = gradient.reshape(b * h, s, d)
        by_value = torch.bmm(used.view(b * h, s, s).transpose(1, 2), gradient)
        by_weight = torch.bmm(gradient, value.transpose(1, 2)).view(b, h, s, s)
        if kept is not None:
            by_weight.mul_(kept).mul_(ctx.growth)
        by_score = _softmax_backward(by_weight, weights).mul_(ctx.scale)
        by_score = by_score.view(b * h, s, s)
        by_query, by_key = torch.bmm(by_score, key), torch.bmm(by_score.transpose(1, 2), query)
        return *(part.view(b, h, s, d) for part in (by_query, by_key, by_value)), None, None, None


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for its next tensors; return whether the system can.

    glibc asks the system anew for each tensor above 32 MiB, and gives much of the rest back at once; the system then
    hands it out page by page, each of them zeroed. The gradient of a vocabulary of 30,522 words alone took 18 ms a step
    so, and takes 2 ms of kept memory (measured on a virtual machine). The most memory that a process takes is the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
