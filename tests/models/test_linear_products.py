"""Products of linear layers through oneDNN are those of torch, and every other call is left to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models import linear_products
from finetune.models.cpu_kernels import SWITCH, CpuKernels, scoring_kernels
from finetune.models.linear_products import linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch lacks oneDNN")


@pytest.fixture(params=["AVX512", "AVX2"])
def on_amd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any processor counts as an AMD processor, and products of any size are supported."""
    monkeypatch.setattr(linear_products, "instruction_set", lambda: request.param)
    monkeypatch.setattr(linear_products, "_MIN_MULTIPLICATIONS", 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_close(actual: Tensor, expected: Tensor) -> bool:
    # At most 64 products per sum in float32 (machine epsilon 6e-8): the error is below 1e-5 of the norm.
    return actual.shape == expected.shape and bool((actual - expected).norm() <= 1e-5 * expected.norm())


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "1-D": lambda: random(24),
    "2-D": lambda: random(40, 24),
    "3-D": lambda: random(3, 7, 24),
    "4-D": lambda: random(2, 3, 7, 24),
    "transposed": lambda: random(7, 3, 24).transpose(0, 1),
    "sliced": lambda: random(3, 7, 48)[..., ::2],
    "first token": lambda: random(3, 7, 24)[:, :1],
    "expanded": lambda: random(1, 24).expand(5, 24),
    "one row": lambda: random(1, 1, 24),
}


@needs_onednn
@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_are_those_of_float64(layout: str, with_bias: bool) -> None:
    parts = [LAYOUTS[layout](), random(64, 24, seed=1), *([random(64, seed=2)] if with_bias else [])]
    factor = random(64, seed=3)
    results = []
    for dtype, kernel in ((torch.float64, F.linear), (torch.float32, linear)):
        leaves = [part.to(dtype).requires_grad_() for part in parts]
        output = kernel(*leaves)
        assert output is not None
        results.append([output.detach(), *torch.autograd.grad((output.square() * factor.to(dtype)).sum(), leaves)])
    expected, actual = results
    assert len(actual) == 1 + len(parts)
    assert all(is_close(*pair) for pair in zip(actual, expected, strict=True))


@needs_onednn
@pytest.mark.usefixtures("on_amd")
@pytest.mark.parametrize("trained", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_gradients_that_are_needed_are_computed(trained: tuple[bool, ...]) -> None:
    parts = [random(6, 24), random(16, 24, seed=1), random(16, seed=2)]
    for part, requires_grad in zip(parts, trained, strict=True):
        part.requires_grad_(requires_grad)
    output = linear(*parts)
    assert output is not None
    kept = [tensor is not None for tensor in output.grad_fn.saved_tensors]  # type: ignore[union-attr]
    assert kept == [trained[1], trained[0]]
    output.square().sum().backward()
    assert [part.grad is not None for part in parts] == list(trained)


@needs_onednn
@pytest.mark.usefixtures("on_amd")
def test_gradients_of_a_width_that_is_slow_in_onednn() -> None:
    x, weight = random(3, 3072).requires_grad_(), random(4, 3072, seed=1)
    output = linear(x, weight)
    assert output is not None
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    exact = 2 * (x.detach().double() @ weight.double().t()) @ weight.double()
    assert is_close(gradient, exact)


@needs_onednn
@pytest.mark.usefixtures("on_amd")
def test_weights_of_any_layout_without_gradients() -> None:
    x = random(6, 24)
    for weight in (random(24, 16).t(), random(16, 48)[:, ::2], random(32, 24)[::2], random(1, 24).expand(16, 24)):
        with torch.no_grad():
            output = linear(x, nn.Parameter(weight))
        assert output is not None
        assert is_close(output, x.double() @ weight.double().t())


@needs_onednn
@pytest.mark.usefixtures("on_amd")
def test_repeated_products_are_bit_identical() -> None:
    x, weight = random(50, 24).requires_grad_(), random(16, 24, seed=1).requires_grad_()

    def compute() -> list[Tensor]:
        output = linear(x, weight)
        assert output is not None
        return [output, *torch.autograd.grad(output.square().sum(), (x, weight))]

    expected = compute()
    for _ in range(3):
        assert all(map(torch.equal, compute(), expected))


@needs_onednn
@pytest.mark.usefixtures("on_amd")
def test_a_second_derivative_is_refused() -> None:
    x, weight = random(6, 24).requires_grad_(), random(16, 24, seed=1)
    output = linear(x, weight)
    assert output is not None
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.usefixtures("on_amd")
def test_other_calls_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = random(6, 24), random(16, 24), random(16)
    unsupported = {
        "float64": (x.double(), weight.double()),
        "bfloat16": (x.bfloat16(), weight.bfloat16()),
        "mixed": (x, weight.double()),
        "another device": (x.to("meta"), weight.to("meta")),
        "sparse": (x, weight.to_sparse()),
        "vector as weight": (x, weight[0]),
        "wrong width": (x[:, 1:], weight),
        "wrong bias": (x, weight, bias[1:]),
        "bias with gaps": (x, weight, random(32)[::2]),
        "bias of one number": (x, weight, bias[:1].expand(16)),
        "scalar": (x[0, 0], weight),
        "empty": (x[:0], weight),
        "no outputs": (x, weight[:0]),
        "no inputs": (x[:, :0], weight[:, :0]),
    }
    assert [name for name, args in unsupported.items() if linear(*args) is not None] == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight) is None
    assert torch.equal(torch.func.vmap(lambda row: linear(row, weight) or row)(x), x)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert linear(x, weight) is None
    monkeypatch.setattr(linear_products, "_MIN_MULTIPLICATIONS", 6 * 24 * 16 + 1)
    assert linear(x, weight) is None


@pytest.mark.parametrize(
    ("vendor", "instructions", "expected"),
    [("AuthenticAMD", "AVX2", "AVX2"), ("AuthenticAMD", "AVX512", "AVX512"), ("", "AVX512", None),
     ("AuthenticAMD", "DEFAULT", None)],
)  # fmt: skip
def test_the_choice_depends_on_the_processor(
    vendor: str, instructions: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    for library in (torch.backends.mkldnn, torch.backends.mkl):
        monkeypatch.setattr(library, "is_available", lambda: True)
    assert linear_products.instruction_set.__wrapped__() == expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert linear_products.instruction_set.__wrapped__() is None


@needs_onednn
@pytest.mark.usefixtures("on_amd")
def test_the_contexts_use_it_and_a_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(24, 16), random(6, 24)

    def name() -> str:
        return type(layer(x).grad_fn).__name__

    assert name() == "AddmmBackward0"
    for kernels in (CpuKernels, lambda: scoring_kernels(layer)):
        with kernels():
            assert name() == "_LinearBackward"
        with monkeypatch.context() as patch:
            patch.setenv(SWITCH, "0")
            with kernels():
                assert name() == "AddmmBackward0"
    assert name() == "AddmmBackward0"
