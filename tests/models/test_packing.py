"""The packed form of a batch, and attention within its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune.models import packing as packing_module
from finetune.models.packing import Packing, packed_attention, packing_of, packing_of_lengths

CPU = torch.device("cpu")
LENGTHS = torch.tensor([3, 5, 1])


def mask_of(lengths: Tensor, length: int, *, left: bool = False) -> Tensor:
    positions = torch.arange(length)
    return (positions >= length - lengths[:, None] if left else positions < lengths[:, None]).long()


def packed(mask: Tensor) -> Packing:
    packing = packing_of(mask)
    assert packing is not None
    return packing


@pytest.mark.parametrize("left", [False, True])
def test_real_tokens_are_packed_row_by_row_and_return_to_their_places(left: bool) -> None:
    mask = mask_of(LENGTHS, 5, left=left)
    packing = packed(mask)
    values = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    sequence = packing.pack(values)
    assert torch.equal(sequence[0], values[mask.bool()])
    assert packing.bounds.tolist() == [0, 3, 8, 9]
    assert (packing.rows, packing.length, packing.longest) == (3, 5, 5)
    assert torch.equal(packing.unpack(sequence), values * mask[..., None])
    assert packing.repeat_per_token(LENGTHS, 9).tolist() == [3] * 3 + [5] * 5 + [1]
    assert packing.repeat_per_token(LENGTHS, 3).tolist() == [3, 5, 1]  # only the first token of each row
    for function, inputs in ((packing.pack, values), (packing.unpack, sequence.detach().requires_grad_())):
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("left", [False, True])
def test_lengths_give_the_packing_of_the_mask(left: bool) -> None:
    from_lengths = packing_of_lengths(LENGTHS, 5, CPU, left=left)
    assert from_lengths is not None
    for one, other in zip(from_lengths, packed(mask_of(LENGTHS, 5, left=left)), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("lengths", [[4, 4], [4], [1, 1], [4, 0]])
def test_batches_without_padding_or_with_an_empty_row_are_not_packed(lengths: list[int]) -> None:
    given = torch.tensor(lengths)
    assert packing_of(mask_of(given, max(lengths))) is None
    assert packing_of_lengths(given, max(lengths), CPU) is None


def attention_by_rows(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, scale: float) -> tuple[Tensor]:
    """Compute what the flash kernel computes, with its arguments: tokens first, (T, H, D)."""
    bounds, same_bounds, longest, same_longest, dropout, causal, _ = arguments
    assert bounds is same_bounds
    assert (longest, dropout, causal) == (same_longest, 0.0, False)
    rows = []
    for start, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))  # (H, S, D)
        rows.append(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
    return (torch.cat(rows),)


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_attention_of_packed_rows_is_that_of_padded_rows(
    monkeypatch: pytest.MonkeyPatch, flash: bool, left: bool
) -> None:
    monkeypatch.setattr(packing_module, "FLASH_KERNEL", attention_by_rows)
    monkeypatch.setattr(packing_module, "_FLASH_DTYPES", (torch.float64,))
    padded = [torch.randn(3, 2, 5, 8, dtype=torch.float64) for _ in range(3)]  # (B, H, S, D)
    mask = mask_of(LENGTHS, 5, left=left).bool()[:, None, None, :].expand(3, 1, 5, 5)
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    expected, _ = sdpa_attention_forward(module, *padded, mask, scaling=0.3)  # type: ignore[arg-type,call-arg]
    packing = packed(mask_of(LENGTHS, 5, left=left))._replace(flash=flash, mask=mask)
    sequences = [packing.pack(part.transpose(1, 2)).transpose(1, 2) for part in padded]  # (1, H, T, D)
    actual, _ = packed_attention(module, *sequences, packing, scaling=0.3)  # type: ignore[arg-type]
    assert actual.shape == (1, 9, 2, 8)
    assert torch.allclose(actual, packing.pack(expected), rtol=0, atol=1e-12)
    unpacked, _ = packed_attention(module, *padded, mask, scaling=0.3)  # type: ignore[arg-type]
    assert torch.equal(unpacked, expected)


def test_the_flash_kernel_accepts_its_arguments() -> None:
    # On the meta device torch checks arguments and computes shapes, without a GPU.
    query, key, value = (torch.empty(1, 2, 9, 16, dtype=torch.float16, device="meta") for _ in range(3))
    bounds = torch.empty(4, dtype=torch.int32, device="meta")
    packing = packed(mask_of(LENGTHS, 5))._replace(flash=True, bounds=bounds)
    output, _ = packed_attention(nn.Module(), query, key, value, packing, dropout=0.1, scaling=0.25)
    assert (output.shape, output.dtype) == ((1, 9, 2, 16), torch.float16)


@pytest.mark.parametrize("options", [{"sliding_window": 3}, {"position_bias": torch.zeros(1)}, {"softcap": 1.0}])
def test_attention_that_is_not_plain_does_not_use_the_flash_kernel(options: dict[str, Any]) -> None:
    query = torch.zeros(1, 2, 9, 16, dtype=torch.float16)
    assert packing_module._flash_supports(nn.Module(), query, query, {})
    assert not packing_module._flash_supports(nn.Module(), query, query, options)
    assert not packing_module._flash_supports(nn.Module(), query.float(), query.float(), {})
    assert not packing_module._flash_supports(nn.Module(), query[..., :12], query[..., :12], {})
    assert not packing_module._flash_supports(nn.Module(), query, query[:, :1], {})  # grouped-query attention
