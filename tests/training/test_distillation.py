from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.activation_store import FROZEN_STATES
from finetune.models.losses import per_example_loss
from finetune.training.distillation import Distillation, distillation_from
from tests.conftest import SENTENCES
from tests.support.helpers import tiny_classifier


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_loss_is_zero_for_the_predictions_of_the_teacher(problem_type: str) -> None:
    classes = 1 if problem_type == "regression" else 3
    teacher = torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    distillation = Distillation(lambda inputs: teacher)
    labels = torch.zeros(4)
    assert distillation.losses({}, teacher, labels, problem_type).abs().max() < 1e-6
    student = (teacher + torch.tensor([[1.0] + [0.0] * (classes - 1)])).requires_grad_()
    losses = distillation.losses({}, student, labels, problem_type)
    assert losses.shape == (4,)
    assert losses.min() > 0
    losses.sum().backward()
    assert student.grad is not None
    assert student.grad[:, 0].min() > 0  # towards the teacher


def test_labels_are_mixed_in_by_their_weight() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    label_losses = per_example_loss(student, torch.tensor([0]), "single_label_classification")
    pure, mixed, only_labels = (
        Distillation(lambda inputs: teacher, label_weight=weight).losses(
            {}, student, label_losses, "single_label_classification"
        )
        for weight in (0.0, 0.25, 1.0)
    )
    assert torch.equal(only_labels, label_losses)
    torch.testing.assert_close(mixed, 0.25 * label_losses + 0.75 * pure)


def test_a_higher_temperature_keeps_the_size_of_the_gradient() -> None:
    sizes = []
    for temperature in (1.0, 100.0):
        student = torch.tensor([[0.01, 0.0]], requires_grad=True)
        distillation = Distillation(lambda inputs: torch.tensor([[0.0, 0.0]]), temperature)
        distillation.losses({}, student, torch.zeros(1), "single_label_classification").sum().backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_teacher_is_frozen_and_in_evaluation_mode(tiny_bert: Path) -> None:
    teacher = tiny_classifier(tiny_bert)
    teacher.model.train()
    frozen_before = teacher.model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    inputs: dict[str, Tensor] = dict(teacher.tokenizer(SENTENCES[:2], padding=True, return_tensors="pt"))
    with distillation_from(teacher, Accelerator(cpu=True)) as distillation:
        assert not teacher.model.training
        first = distillation.teacher_logits({**inputs, FROZEN_STATES: torch.zeros(1)})
        assert not first.requires_grad
        assert torch.equal(first, distillation.teacher_logits(inputs))  # no dropout
    assert teacher.model.training
    assert [p for p in teacher.model.parameters() if not p.requires_grad] == [frozen_before]
    assert all(tensor.equal(weights[name]) for name, tensor in teacher.model.state_dict().items())
