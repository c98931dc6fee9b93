"""Matrix products of linear layers in float32 through oneDNN, on AMD processors.

torch computes float32 products with MKL, which selects its kernels by the processor's vendor: on AMD it never uses
AVX-512. oneDNN, which is part of torch, selects by instruction set. Both are exact float32, with sums in another order.
Measured on an AMD Zen 5 processor, one thread, 900 tokens, width 384 (GFLOP/s):

    instruction set   library   output      gradient of the input   gradient of the weight
    AVX-512           MKL       111 to 114  111 to 113              111 to 112
    AVX-512           oneDNN    250 to 253  256 to 265              231 to 238
    AVX2              MKL       113 to 116  113 to 117              111 to 115
    AVX2              oneDNN    131 to 132  132 to 136              98 to 127

The choice depends on the processor and on shapes, never on a measurement, so a run repeats bit by bit on one machine.
`FINETUNE_CPU_KERNELS=0` in the environment turns off these products and the other kernels of `cpu_kernels`.

    N tokens, I inputs, O outputs
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_VENDORS = ("AuthenticAMD", "HygonGenuine")  # MKL uses its AVX-512 kernels on Intel's processors only
# Multiplications of the smallest product that goes to oneDNN, which takes longer to start: 8 tokens of width 384 took
# as long in both.
_MIN_MULTIPLICATIONS = 2**21


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Return input weight^T + bias, (..., O), computed by oneDNN; None where torch's own function must be called.

    A second derivative is refused with a RuntimeError.

    Args:
        input: (..., I).
        weight: (O, I).
        bias: (O,), or None.
    """
    if not _is_supported(input, weight, bias):
        return None
    parts = (input, weight) if bias is None else (input, weight, bias)
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        result: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return _product(input, weight, bias)


def _is_supported(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN computes this product, with the same result up to rounding and in less time."""
    parts = (input, weight) if bias is None else (input, weight, bias)
    return (
        all(type(part) in (Tensor, nn.Parameter) and _is_plain(part) for part in parts)
        and weight.dim() == 2
        and input.dim() >= 1
        and input.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))  # oneDNN ignores its stride
        and input.numel() * weight.shape[0] >= _MIN_MULTIPLICATIONS
        and instruction_set() is not None
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and bool(torch.backends.mkldnn.enabled)
    )


def _is_plain(part: Tensor) -> bool:
    return part.dtype == torch.float32 and part.device.type == "cpu" and part.layout == torch.strided


@functools.cache
def instruction_set() -> str | None:
    """Return AVX512 or AVX2, which torch uses, if oneDNN is faster than MKL on this processor, else None."""
    name = torch.backends.cpu.get_cpu_capability()
    libraries = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return name if libraries and name in ("AVX512", "AVX2") and _vendor() in _VENDORS else None


def _vendor() -> str:
    """Return the processor's vendor as the CPUID instruction names it; empty if it is unknown."""
    description = Path("/proc/cpuinfo")
    text = description.read_text() if platform.system() == "Linux" else platform.processor()
    return next((vendor for vendor in _VENDORS if vendor in text), "")


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return input weight^T + bias, (..., O), by oneDNN, for input (..., I) and weight (O, I), without a gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (..., O), and keep what the gradients that are needed depend on."""
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of input, weight and bias for that of the output, (..., O)."""
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # (N, O)
        grad_input = _input_gradient(gradient, weight) if needs_input else None
        grad_weight = _weight_gradient(rows, input.reshape(-1, input.shape[-1])) if needs_weight else None
        return grad_input, grad_weight, rows.sum(0) if needs_bias else None


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return gradient weight, (..., I), for (..., O) and (O, I).

    With AVX2 and 3,072 inputs or outputs, as in BERT-base, oneDNN reached 66 to 97 GFLOP/s and MKL 102 to 108.
    """
    slow = instruction_set() == "AVX2" and 3072 in weight.shape
    return gradient @ weight if slow else _product(gradient, weight.t())


def _weight_gradient(gradient: Tensor, input: Tensor) -> Tensor:
    """Return gradient^T input, (O, I), for (N, O) and (N, I); with AVX2 MKL is as fast, without copies."""
    return _product(gradient.t(), input.t()) if instruction_set() == "AVX512" else gradient.t() @ input
