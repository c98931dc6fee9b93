from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from finetune.models.losses import (
    LossOptions,
    balanced_class_weights,
    decisions,
    per_example_loss,
    supervised_contrastive_loss,
)


def test_single_label_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    labels = torch.tensor([1, 0])
    expected = torch.tensor([math.log(4 / 3), math.log(2)])
    torch.testing.assert_close(per_example_loss(logits, labels, "single_label_classification"), expected)
    weighted = per_example_loss(logits, labels, "single_label_classification", LossOptions(torch.tensor([2.0, 10.0])))
    torch.testing.assert_close(weighted, expected * torch.tensor([10.0, 2.0]))
    assert decisions(logits, "single_label_classification").tolist() == [1, 0]


def test_multi_label_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1, 0]])
    expected = torch.tensor([(math.log(2) + math.log(4)) / 2])
    torch.testing.assert_close(per_example_loss(logits, labels, "multi_label_classification"), expected)
    assert decisions(logits, "multi_label_classification").tolist() == [[0, 1]]


def test_regression_by_hand() -> None:
    logits, labels = torch.tensor([[2.5]]), torch.tensor([1.0], dtype=torch.float64)
    assert per_example_loss(logits, labels, "regression").tolist() == [2.25]
    assert decisions(logits, "regression").tolist() == [2.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_for_logits_of_any_dtype(dtype: torch.dtype) -> None:
    loss = per_example_loss(torch.zeros(1, 2, dtype=dtype), torch.tensor([0]), "single_label_classification")
    assert loss.dtype == torch.float32


def test_balanced_weights_average_one_over_the_examples() -> None:
    counts = torch.tensor([30, 10, 0])
    weights = balanced_class_weights(counts)
    assert weights[1] == 3 * weights[0]
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 10.0, 0.5])], ids=["", "class weights"])
def test_label_smoothing_is_that_of_torch(weights: torch.Tensor | None) -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 1, 0, 2, 1])
    losses = per_example_loss(logits, labels, "single_label_classification", LossOptions(weights, label_smoothing=0.1))
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    scale = torch.ones(3) if weights is None else weights
    torch.testing.assert_close(losses, -(target * scale * logits.log_softmax(-1)).sum(-1))
    mean = F.cross_entropy(logits, labels, weights, label_smoothing=0.1)  # divided by the sum of the label's weights
    torch.testing.assert_close(losses.sum() / scale[labels].sum(), mean)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 10.0, 0.5])], ids=["", "weights"])
def test_focal_loss_by_its_equation(weights: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator)
    ids, sets = torch.tensor([0, 1, 2, 1, 0, 2, 1]), torch.randint(2, (7, 3), generator=generator)
    scale = torch.ones(3) if weights is None else weights
    p = logits.softmax(-1)[torch.arange(7), ids]
    expected = -scale[ids] * (1 - p) ** 2.5 * p.log()
    options = LossOptions(class_weights=weights, pos_weight=weights, focal_gamma=2.5)
    torch.testing.assert_close(per_example_loss(logits, ids, "single_label_classification", options), expected)
    p = torch.where(sets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-torch.where(sets == 1, scale, torch.ones(3)) * (1 - p) ** 2.5 * p.log()).mean(-1)
    torch.testing.assert_close(per_example_loss(logits, sets, "multi_label_classification", options), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_for_certain_predictions(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)  # right, wrong; p is exactly 1 and 0
    for problem_type, labels in (
        ("single_label_classification", torch.tensor([0, 0])),
        ("multi_label_classification", torch.tensor([[1, 0], [1, 0]])),
    ):
        losses = per_example_loss(logits, labels, problem_type, LossOptions(focal_gamma=gamma))
        assert losses[0] == 0
        assert losses[1] > 100
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


def test_rows_without_another_of_their_class_have_no_contrastive_loss() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    assert supervised_contrastive_loss(states, torch.tensor([0, 1, 2]), 0.1).tolist() == [0, 0, 0]
    losses = supervised_contrastive_loss(states, torch.tensor([0, 1, 1]), 0.1)
    assert (losses > 0).tolist() == [False, True, True]
    single = supervised_contrastive_loss(states[:1], torch.tensor([0]), 0.1)
    assert single.tolist() == [0]
    (losses.sum() + single.sum()).backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
