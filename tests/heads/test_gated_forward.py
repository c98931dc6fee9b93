from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads.gated_forward import gate_gradients, sample_rows
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates
from tests.models.test_head_gates import BUILDERS
from tests.support.helpers import FLOAT64, assert_equal_up_to_rounding, encoded, in_float64, sample_of


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    return in_float64(request.param(tiny_bert))


def loss_of_row(classifier: Classifier, row: int, gates: torch.Tensor) -> torch.Tensor:
    """Return the loss of one row in a batch of one, without padding, in float64."""
    split, base = encoded(classifier), classifier.base.eval()
    ids = torch.tensor([split.rows["input_ids"][row]])
    with head_gates(base, attention_sites(base), gates):
        logits = base(input_ids=ids).logits
    # Not per_example_loss: it computes in float32, whose rounding is too coarse for finite differences.
    return torch.nn.functional.cross_entropy(logits, torch.tensor([int(split.labels[row])]))


def test_gradients_equal_finite_differences(classifier: Classifier) -> None:
    result = gate_gradients(sample_of(classifier, 6, batch_size=4))
    assert result.shape == (6, 2, 3)
    step, numeric = 1e-5, np.zeros_like(result, dtype=np.float64)
    with torch.no_grad():
        for row in range(6):
            for layer in range(2):
                for head in range(3):
                    up, down = (torch.ones(2, 3, dtype=torch.float64) for _ in range(2))
                    up[layer, head] += step
                    down[layer, head] -= step
                    difference = loss_of_row(classifier, row, up) - loss_of_row(classifier, row, down)
                    numeric[row, layer, head] = float(difference) / (2 * step)
    # Expected: rounding of a float64 loss near 1, divided by the step: 2e-11; third derivative times step²: 1e-10.
    assert_equal_up_to_rounding(result, numeric, FLOAT64)
    assert np.abs(result).max() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_changes_nothing(classifier: Classifier, batch_size: int) -> None:
    one_batch = gate_gradients(sample_of(classifier, 6, batch_size=6))
    small_batches = gate_gradients(sample_of(classifier, 6, batch_size=batch_size))
    assert_equal_up_to_rounding(small_batches, one_batch, FLOAT64)


def test_the_batch_size_changes_only_rounding_in_float32(tiny_bert: Path) -> None:
    classifier: Classifier = BUILDERS[0](tiny_bert)
    one_batch, small_batches = (gate_gradients(sample_of(classifier, 6, batch_size=size)) for size in (6, 2))
    assert_equal_up_to_rounding(small_batches, one_batch)


def test_the_classifier_is_not_changed(classifier: Classifier) -> None:
    classifier.model.train()
    trainable = {name for name, p in classifier.model.named_parameters() if p.requires_grad}
    gate_gradients(sample_of(classifier, 2, batch_size=2))
    assert classifier.base.training
    assert {name for name, p in classifier.model.named_parameters() if p.requires_grad} == trainable
    assert all(p.grad is None for p in classifier.model.parameters())


def test_a_head_with_zero_values_has_zero_gradient(tiny_bert: Path) -> None:
    classifier: Classifier = BUILDERS[0](tiny_bert)
    site = attention_sites(classifier.base)[1]
    value = classifier.base.get_submodule(site.value)
    with torch.no_grad():
        value.weight[8:16] = 0  # head 1 of width 8
        value.bias[8:16] = 0
    gradients = gate_gradients(sample_of(classifier, 6, batch_size=6))
    assert (gradients[:, 1, 1] == 0).all()
    assert (np.delete(gradients.reshape(6, 6), 4, axis=1) != 0).all()


def test_rows_are_sampled_without_replacement() -> None:
    assert sample_rows(3, None, 0) == sample_rows(3, 5, 0) == [0, 1, 2]
    drawn = sample_rows(100, 10, 0)
    assert drawn == sorted(set(drawn)) == sample_rows(100, 10, 0)
    assert len(drawn) == 10
    assert drawn != sample_rows(100, 10, 1)
