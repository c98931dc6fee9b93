"""The CPU kernels give the results of PyTorch's kernels, and the allocator keeps freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models import cpu_kernels
from finetune.models.cpu_kernels import CpuKernels

SHAPE = (2, 3, 5, 4)  # rows, heads, tokens, head width


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def masks() -> dict[str, Tensor | None]:
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, :, :, 3:] = False
    return {
        "none": None,
        "boolean": visible,
        "added": torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~visible, -1e30),
    }


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_equals_that_of_torch(mask: str, scale: float | None) -> None:
    parts = [random(*SHAPE, seed=seed) for seed in range(3)]
    weight = random(*SHAPE, seed=9).detach()
    results = []
    for kernel in (cpu_kernels.attention, F.scaled_dot_product_attention):
        result = kernel(*parts, attn_mask=masks()[mask], scale=scale)
        assert result is not None
        results.append([result.detach(), *torch.autograd.grad((result * weight).sum(), parts)])
    for actual, expected_part in zip(*results, strict=True):
        assert torch.allclose(actual, expected_part, rtol=0, atol=1e-12)


def test_attention_drops_weights_at_the_given_rate() -> None:
    # If the values are the identity matrix, attention returns its weights.
    query, key = random(1, 2, 64, 64, seed=0), random(1, 2, 64, 64, seed=1)
    value = torch.eye(64, dtype=torch.float64).expand(1, 2, 64, 64).clone().requires_grad_()
    torch.manual_seed(3)
    used = cpu_kernels.attention(query, key, value, dropout_p=0.25)
    undropped = cpu_kernels.attention(query, key, value)
    assert used is not None
    assert undropped is not None
    kept = used != 0
    assert abs(kept.double().mean().item() - 0.75) < 0.02  # 8,192 draws: standard error 0.005
    assert torch.allclose(used[kept], undropped[kept] / 0.75, rtol=1e-12)
    weight = random(1, 2, 64, 64, seed=4).detach()
    gradients = torch.autograd.grad((used * weight).sum(), (query, key, value))
    scores = (query @ key.transpose(-1, -2) / 8).softmax(-1) * kept / 0.75
    expected = torch.autograd.grad(((scores @ value) * weight).sum(), (query, key, value))
    for actual, expected_part in zip(gradients, expected, strict=True):
        assert torch.allclose(actual, expected_part, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1000, 401), (3,), (2, 0)])
def test_dropout_zeroes_a_share_and_keeps_the_mean(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.ones(shape, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    result = cpu_kernels.dropout(values, 0.1)
    assert result is not None
    (gradient,) = torch.autograd.grad(result.sum(), values)
    assert torch.equal(gradient, result)  # the same mask and scale
    assert set(result.flatten().tolist()) <= {0.0, torch.tensor(65536 / (65536 - 6554), dtype=dtype).item()}
    if values.numel() > 1000:
        kept = (result != 0).double()
        assert abs(kept.mean().item() - 0.9) < 0.002  # 401,000 draws: standard error 0.0005
        # Eight values share one random number, and 1,024 a threshold, but they must be independent.
        lanes = kept.flatten()[: kept.numel() // 8 * 8].unflatten(0, (-1, 8)) - 0.9
        shared = lanes.T @ lanes / len(lanes)
        assert (shared - torch.diag(shared.diag())).abs().max() < 0.002


def test_dropout_has_the_given_rate() -> None:
    values = torch.ones(1_000_000)
    for rate in (0.01, 0.1, 0.5, 0.95, 0.999):
        result = cpu_kernels.dropout(values, rate)
        assert result is not None
        assert abs((result == 0).double().mean().item() - rate) < 0.002
    # Rates between two thresholds of 8 bits: 1,000 blocks draw one of them, with a standard error of 0.00006.
    for steps in (1, 26 * 256, 26 * 256 + 128, 26 * 256 + 255, 254 * 256 + 255):
        dropped = 1 - cpu_kernels._keep_mask(torch.empty(10_000_000), steps).double().mean().item()
        assert abs(dropped - steps / 2**16) < 0.0008, steps  # 10^7 draws: standard error 0.00016


def test_unsupported_calls_return_none() -> None:
    values, parts = torch.ones(4), [random(*SHAPE, seed=seed) for seed in range(3)]
    assert cpu_kernels.dropout(values, 0.0) is None
    assert cpu_kernels.dropout(values, 1.0) is None
    assert cpu_kernels.dropout(values, 0.5, False) is None
    assert cpu_kernels.dropout(values, 0.5, True, True) is None
    assert cpu_kernels.attention(*parts, is_causal=True) is None
    assert (
        cpu_kernels.attention(*parts, attn_mask=random(2, 3, 5, 5)) is None
    )  # the gradient of this mask would be lost
    assert cpu_kernels.attention(parts[0][:, :, :2], *parts[1:]) is None
    assert cpu_kernels.attention(parts[0].float(), *parts[1:]) is None
    with torch.no_grad():
        assert cpu_kernels.attention(*parts) is None


def test_the_context_replaces_the_kernels_of_torch_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    values, parts = torch.ones(5), [random(*SHAPE, seed=seed) for seed in range(3)]
    names = {"DropoutBackward0", "_DropoutBackward", "_AttentionBackward"}

    def used() -> set[str]:
        results = nn.Dropout(0.5)(values.clone().requires_grad_()), F.scaled_dot_product_attention(*parts)
        return {type(result.grad_fn).__name__ for result in results} & names

    assert used() == set()
    with CpuKernels():
        assert used() == {"_DropoutBackward", "_AttentionBackward"}
        assert torch.equal(nn.Dropout(0.5).eval()(values), values)
        assert torch.equal(F.relu(-values), torch.zeros(5))
    assert used() == set()


def test_masks_come_from_the_default_generator_of_torch() -> None:
    def draw() -> Tensor:
        with CpuKernels():
            return F.dropout(torch.ones(100), 0.5)

    torch.manual_seed(5)
    first, state = draw(), torch.get_rng_state()
    second = draw()
    torch.set_rng_state(state)
    assert torch.equal(draw(), second)
    assert not torch.equal(first, second)


def test_attention_under_autocast_has_the_autocast_dtype() -> None:
    parts = [random(*SHAPE, seed=seed, dtype=torch.float32) for seed in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cpu_kernels.attention(*parts)
    assert result is not None
    assert result.dtype == torch.bfloat16
    gradients = torch.autograd.grad(result.float().sum(), parts)
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*parts).sum(), parts)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    for actual, expected_part in zip(gradients, expected, strict=True):
        assert torch.allclose(actual, expected_part, rtol=0, atol=0.05)


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


@pytest.mark.parametrize("tokens", [12, 16, 29, 32, 40])  # with and without conversion to float32
def test_attention_in_bfloat16_has_the_rounding_error_of_eager_attention(tokens: int) -> None:
    exact = [random(2, 3, tokens, 4, seed=seed).detach().bfloat16().double() for seed in range(4)]
    results = []
    for kernel, dtype in ((eager, torch.float64), (cpu_kernels.attention, torch.bfloat16), (eager, torch.bfloat16)):
        *parts, weight = (part.to(dtype).requires_grad_() for part in exact)
        result = kernel(*parts)
        assert result is not None
        results.append([result.detach(), *torch.autograd.grad((result * weight).sum(), parts)])
    for expected, actual, reference in zip(*results, strict=True):
        error, usual = ((output.double() - expected).norm() / expected.norm() for output in (actual, reference))
        assert error < 1.1 * usual
        assert usual < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fully_masked_row_is_finite(dtype: torch.dtype) -> None:
    parts = [random(*SHAPE, seed=seed, dtype=dtype) for seed in range(3)]
    hidden = torch.zeros(2, 1, 5, 5)
    for lowest in (-torch.inf, torch.finfo(torch.float32).min):
        result = cpu_kernels.attention(*parts, attn_mask=hidden.index_fill(2, torch.tensor([3]), lowest))
        assert result is not None
        assert result.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(result.float().sum(), parts))


# Count the page faults while a large tensor is allocated repeatedly.
SCRIPT = """
import resource, torch
from finetune.models.cpu_kernels import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = pages()
assert keep_freed_memory()
pages()
print(before, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000  # 480 MB in pages of 4 KiB or larger
    assert after < before / 100
