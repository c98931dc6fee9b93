"""Batches without padding: the real tokens of all rows as one sequence, and attention within each row.

Everything in an encoder layer but attention treats tokens separately, so it can compute the real tokens only. Attention
then has one of two forms: a flash kernel for rows of different lengths (on a GPU, in float16 or bfloat16), or queries,
keys and values are padded again, for attention only.

    B rows, S tokens of the padded batch, T real tokens of all rows, E hidden size, H heads, D head width
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FLASH_KERNEL = torch.ops.aten._flash_attention_forward
PACKED_ATTENTION = "finetune_packed"  # the name of `packed_attention` in transformers
_PACKING = "_packing"  # attribute of the model whose current batch is packed
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_WIDTHS, _MAX_FLASH_WIDTH = 8, 256  # head widths of the flash kernel: multiples of the first, up to the second
# Arguments of an attention function with which attention is not plain.
_NOT_PLAIN = ("sliding_window", "position_bias", "softcap", "s_aux")


class Packing(NamedTuple):
    """Where the real tokens of a batch are. Layers get it in place of the attention mask.

    Attributes:
        tokens: the number of each real token among all B * S tokens, row by row, (T,).
        bounds: where each row begins in the packed sequence, and T, (B + 1,), int32.
        rows, length: B and S.
        longest: number of real tokens of the longest row.
        flash: whether attention may use the flash kernel.
        keep_all: whether the last layer computes all tokens also where the head reads only the first of each row.
        mask: the mask for padded attention that the model computed, (B, 1, S, S); None: it computed none.
    """

    tokens: Tensor
    bounds: Tensor
    rows: int
    length: int
    longest: int
    flash: bool = False
    keep_all: bool = False
    mask: Tensor | None = None

    def pack(self, values: Tensor) -> Tensor:
        """Return the values of the real tokens, (1, T, ...), of (B, S, ...)."""
        if torch.compiler.is_compiling():  # the compiler differentiates the operations itself
            return _pack(values, self.tokens)
        packed: Tensor = _Pack.apply(values, self.tokens)  # type: ignore[no-untyped-call]
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Return values (1, T, ...) at their places in the batch, (B, S, ...), and zeros at padding."""
        if torch.compiler.is_compiling():
            return _unpack(packed, self.tokens, self.rows, self.length)
        values: Tensor = _Unpack.apply(packed, self.tokens, self.rows, self.length)  # type: ignore[no-untyped-call]
        return values

    def repeat_per_token(self, values: Tensor, num_tokens: int) -> Tensor:
        """Return values (B, ...) of the rows for packed tokens: T of them, or B if only the first of each row is."""
        return values if num_tokens == self.rows else values.index_select(0, self.tokens // self.length)


def packing_of(attention_mask: Tensor, *, flash: bool = False) -> Packing | None:
    """Return the packing of a batch with this mask (B, S), 1 for real tokens; None: it has no padding to save.

    A batch with an empty row is not packed, because its padding has results of its own. For a mask on a GPU this
    waits for the GPU; see `packing_of_lengths`.
    """
    real = attention_mask.bool()
    lengths = real.sum(1)
    shortest, longest = (int(value) for value in torch.stack(torch.aminmax(lengths)))
    rows, length = attention_mask.shape
    if shortest == 0 or shortest == length:
        return None
    return Packing(real.flatten().nonzero()[:, 0], _bounds(lengths), rows, length, longest, flash)


def packing_of_lengths(
    lengths: Tensor, length: int, device: torch.device, *, left: bool = False, flash: bool = False
) -> Packing | None:
    """Return the packing of rows with these numbers of tokens (B,), on the CPU, padded to `length`; None: see above.

    Nothing waits for the device: the packing is computed on the CPU, and copied asynchronously to a GPU.

    Args:
        left: whether padding is before the tokens of a row instead of after them.
    """
    positions = torch.arange(length)
    real = positions >= length - lengths[:, None] if left else positions < lengths[:, None]
    packing = packing_of(real, flash=flash)
    if packing is None or device.type == "cpu":
        return packing
    pinned = device.type == "cuda"
    tokens, bounds = (
        (part.pin_memory() if pinned else part).to(device, non_blocking=pinned)
        for part in (packing.tokens, packing.bounds)
    )
    return packing._replace(tokens=tokens, bounds=bounds)


def _bounds(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def current_packing(model: nn.Module) -> Packing | None:
    """Return the packing of the batch that the model computes, or computed last; None: it is padded."""
    packing: Packing | None = vars(model).get(_PACKING)
    return packing


def set_packing(model: nn.Module, packing: Packing | None) -> None:
    """Set what `current_packing` returns."""
    vars(model)[_PACKING] = packing


def register_attention() -> None:
    """Let transformers know `packed_attention` by its name."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _mask)


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """Return the mask of `sdpa`; on a GPU without a look at its content, for which the GPU has to finish its work."""
    tokens = options.get("attention_mask")
    if tokens is not None and tokens.device.type != "cpu":
        options["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = sdpa_mask(*args, **options)
    return mask


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Packing | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of packed rows, (1, T, H, D); without a packing, that of `sdpa`.

    Args:
        module: the attention module.
        query, key, value: (1, H, T, D).
        attention_mask: the packing of the batch.
        options: what the module passes to an attention function of transformers, such as dropout and scaling.
    """
    if not isinstance(attention_mask, Packing):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    packing = attention_mask
    if packing.flash and _flash_supports(module, query, key, options):
        return _flash_attention(query, key, value, packing, options), None
    query, key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    output, _ = sdpa_attention_forward(module, query, key, value, packing.mask, **options)  # (B, S, H, D)
    return packing.pack(output), None


def _flash_supports(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    width = query.shape[-1]
    return (
        query.dtype in _FLASH_DTYPES
        and query.shape == key.shape
        and width % _FLASH_WIDTHS == 0
        and width <= _MAX_FLASH_WIDTH
        and not getattr(module, "is_causal", False)
        and all(options.get(name) is None for name in _NOT_PLAIN)
    )


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, options: dict[str, Any]) -> Tensor:
    """Return the attention output (1, T, H, D) of the kernel for rows of different lengths.

    It is the operator that `torch.nn.attention.varlen.varlen_attn` and nested tensors call; `varlen_attn` itself has no
    dropout. The arguments that are given here are the same in all supported versions of torch.
    """
    output, *_ = FLASH_KERNEL(
        *(part[0].transpose(0, 1) for part in (query, key, value)),  # (T, H, D)
        packing.bounds,
        packing.bounds,
        packing.longest,
        packing.longest,
        options.get("dropout", 0.0),
        False,  # causal
        False,  # no debug mask
        scale=options.get("scaling"),
    )
    result: Tensor = output.unsqueeze(0)
    return result


def _pack(values: Tensor, tokens: Tensor) -> Tensor:
    return values.flatten(0, 1).index_select(0, tokens).unsqueeze(0)


def _unpack(packed: Tensor, tokens: Tensor, rows: int, length: int) -> Tensor:
    empty = packed.new_zeros(rows * length, *packed.shape[2:])
    values: Tensor = empty.index_copy(0, tokens, packed[0]).unflatten(0, (rows, length))
    return values


class _Pack(torch.autograd.Function):
    """`Packing.pack`, whose backward pass copies rows, where that of indexing adds them up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape = values.shape[:2]
        return _pack(values, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the padded values."""
        return _unpack(gradient, *ctx.saved_tensors, *ctx.shape), None


class _Unpack(torch.autograd.Function):
    """`Packing.unpack`."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, tokens: Tensor, rows: int, length: int) -> Tensor:
        ctx.save_for_backward(tokens)
        return _unpack(packed, tokens, rows, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the packed values."""
        return _pack(gradient, *ctx.saved_tensors), None, None, None
