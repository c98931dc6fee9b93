from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from finetune.heads.elimination import eliminate, refitted
from finetune.heads.output_moments import OutputMoments
from finetune.heads.sublayers import HEADS, NEURONS, Sublayer


def moments_of(inputs: Tensor, sensitivity: Tensor | None = None, *, centered: bool = True) -> OutputMoments:
    """Return the moments of inputs (N, D)."""
    mean = inputs.mean(0) * float(centered)
    outputs = torch.eye(3, dtype=torch.float64)
    covariance = inputs.T @ inputs / len(inputs) - torch.outer(mean, mean)
    return OutputMoments(mean, covariance, outputs if sensitivity is None else sensitivity)


@pytest.fixture(autouse=True)
def no_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.heads.elimination.RIDGE", 1e-12)


@pytest.fixture
def inputs() -> Tensor:
    """Inputs (200, 8) of a projection: the last two are linear in the others, up to some noise and a constant."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    last = first @ torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return torch.cat([first, last + 3 + 0.1 * torch.randn(200, 2, generator=generator, dtype=torch.float64)], 1)


WEIGHT = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NETWORK = Sublayer(NEURONS, (0,), "output", 8, 1, 1, 1)


def change(inputs: Tensor, columns: list[int], moments: OutputMoments, sensitivity: Tensor) -> float:
    """Return the measured change of the logits if only these columns remain and are refitted."""
    weight, bias = refitted(moments, WEIGHT, columns)
    difference = inputs[:, columns] @ weight.T + bias - inputs @ WEIGHT.T
    return float(((difference @ sensitivity) * difference).sum(1).mean())


def test_the_refit_is_exact_on_a_linear_problem(inputs: Tensor) -> None:
    exact = torch.cat([inputs[:, :6], inputs[:, :6] @ torch.ones(6, 2, dtype=torch.float64) * 0.5 + 3], 1)
    weight, bias = refitted(moments_of(exact), WEIGHT, list(range(6)))
    torch.testing.assert_close(exact[:, :6] @ weight.T + bias, exact @ WEIGHT.T, atol=1e-8, rtol=0)


@pytest.mark.parametrize("centered", [True, False])
def test_the_refit_is_the_least_squares_solution(inputs: Tensor, centered: bool) -> None:
    columns = [0, 2, 3, 7]
    weight, bias = refitted(moments_of(inputs, centered=centered), WEIGHT, columns)
    design = torch.cat([inputs[:, columns], torch.ones(200, int(centered), dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(design, inputs @ WEIGHT.T).solution.T
    torch.testing.assert_close(weight, expected[:, :4], atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, expected[:, 4] if centered else torch.zeros(3).double(), atol=1e-6, rtol=0)
    empty, mean = refitted(moments_of(inputs), WEIGHT, [])
    assert empty.shape == (3, 0)
    torch.testing.assert_close(mean, WEIGHT @ inputs.mean(0))


def test_the_cost_is_the_measured_change_and_the_first_choice_is_the_best(inputs: Tensor) -> None:
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sensitivity = root.T @ root
    moments = moments_of(inputs, sensitivity)
    elimination = eliminate(NETWORK, moments, WEIGHT)
    assert sorted(elimination.order) == list(range(8))
    assert elimination.costs[0] == 0
    for size, cost in zip(NETWORK.sizes(), elimination.costs, strict=True):
        remaining = elimination.remaining(size)
        assert len(remaining) == size
        assert cost == pytest.approx(change(inputs, remaining, moments, sensitivity), rel=1e-6, abs=1e-8)
    single = {gone: change(inputs, [c for c in range(8) if c != gone], moments, sensitivity) for gone in range(8)}
    assert elimination.order[0] == min(single, key=single.__getitem__)
    pairs = [
        change(inputs, [c for c in range(8) if c not in pair], moments, sensitivity)
        for pair in combinations(range(8), 2)
    ]
    assert elimination.costs[2] <= sorted(pairs)[len(pairs) // 4]  # greedy, not always the best pair


def test_heads_are_removed_as_blocks_of_columns(inputs: Tensor) -> None:
    heads = Sublayer(HEADS, (0,), "output", 4, 1, 2, 1)
    moments = moments_of(inputs)
    elimination = eliminate(heads, moments, WEIGHT)
    for size, cost in zip(heads.sizes(), elimination.costs, strict=True):
        columns = heads.columns(elimination.remaining(size))
        expected = change(inputs, columns, moments, torch.eye(3, dtype=torch.float64))
        assert cost == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_inputs_that_are_constant_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.heads.elimination.RIDGE", 1e-3)
    constant = torch.full((5, 8), 2.0, dtype=torch.float64)
    elimination = eliminate(NETWORK, moments_of(constant), WEIGHT)
    weight, bias = refitted(moments_of(constant), WEIGHT, [0])
    torch.testing.assert_close(constant[:, :1] @ weight.T + bias, constant @ WEIGHT.T)
    assert len(elimination.costs) == 9
