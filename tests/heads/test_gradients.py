from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.batching import load_batches
from finetune.heads.gated_forward import GatedRows, gate_gradients, row_losses
from finetune.heads.gradients import fisher, gradient, gradient_layer_norm, integrated_gradients, path_gradients
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates
from tests.models.test_head_gates import BUILDERS
from tests.support.helpers import FLOAT64, assert_equal_up_to_rounding, encoded, in_float64, sample_of
from tests.support.known_head import known_head


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    return in_float64(request.param(tiny_bert))


def running_totals(sample: GatedRows, batch_size: int) -> np.ndarray:
    """Return the importance as public code computes it: gradients of batch means, accumulated without a reset."""
    base, sites = sample.classifier.base.eval(), sample.sites
    gates = sample.gates().requires_grad_()
    total = torch.zeros_like(gates)
    batches = [sample.rows[start : start + batch_size] for start in range(0, len(sample), batch_size)]
    device = torch.device("cpu")
    for batch in load_batches(sample.split, batches, sample.classifier.tokenizer, device=device):
        with head_gates(base, sites, gates):
            logits = base(**batch.inputs).logits
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        total += gates.grad.abs() / len(batches)
    return total.detach().numpy()


def test_gradient_does_not_depend_on_the_batch_size_but_running_totals_do() -> None:
    rows = known_head(32)
    values, running = [], []
    for batch_size in (1, 8, 32):
        resized = GatedRows(rows.classifier, rows.split, "validation", rows.rows, batch_size, rows.accelerator)
        values.append(gradient(resized).values)
        running.append(running_totals(resized, batch_size))
    for other in values[1:]:
        assert_equal_up_to_rounding(other, values[0])
    assert not np.allclose(running[1], running[0], rtol=0.2)
    assert not np.allclose(running[2], running[1], rtol=0.2)


def test_gradient_is_the_mean_absolute_value_with_its_standard_error(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    gradients, result = gate_gradients(sample), gradient(sample)
    assert_equal_up_to_rounding(result.values, np.abs(gradients).mean(0), FLOAT64)
    assert_equal_up_to_rounding(result.errors, np.abs(gradients).std(0, ddof=1) / np.sqrt(6), FLOAT64)
    assert not np.allclose(
        np.abs(gradients.mean(0)), result.values, rtol=0.05
    )  # the mean of signed gradients would cancel


def test_fisher_is_the_mean_square(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    assert_equal_up_to_rounding(fisher(sample).values, (gate_gradients(sample) ** 2).mean(0), FLOAT64)


def test_layers_are_divided_by_their_norm(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    plain, result = gradient(sample), gradient_layer_norm(sample)
    norms = np.linalg.norm(plain.values, axis=1, keepdims=True)
    np.testing.assert_allclose(result.values, plain.values / norms, rtol=1e-9)
    np.testing.assert_allclose(result.errors, plain.errors / norms, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(result.values, axis=1), 1)


def test_integrated_gradients_sum_to_the_loss_reduction_of_all_heads(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    drops = row_losses(sample, 0 * sample.gates()) - row_losses(sample, sample.gates())
    drop = drops.mean()
    gap = abs(integrated_gradients(sample, 300).values.sum() - drop)
    # The loss of these random models is less linear along the path than that of trained ones: measured up to 1.7 % of
    # the mean change per row with 300 steps, over three seeds of the head.
    assert gap < 0.05 * np.abs(drops).mean()
    assert abs(drop) > 0.1 * np.abs(drops).mean() > 1e-4  # rows cancel only in part
    assert integrated_gradients(sample, 4).note.endswith(f"the loss with all heads is {drop:.4f}")


def test_rows_are_evaluated_at_stratified_random_points_of_the_path(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    gates = sample.gates()
    result = path_gradients(sample, gates, 3, seed=5)
    rng, expected = np.random.default_rng(5), np.zeros_like(result)
    for step in range(3):
        positions = (step + (rng.permutation(6) + rng.random(6)) / 6) / 3
        assert step / 3 <= positions.min() <= positions.max() <= (step + 1) / 3
        for row, position in enumerate(positions):
            single_row = sample.subset(sample.rows[row : row + 1])
            expected[row] += gate_gradients(single_row, torch.full_like(gates, position))[0] / 3
    assert_equal_up_to_rounding(result, expected, FLOAT64)  # batches of 6 and of 1


def test_a_removed_head_is_not_on_the_path(classifier: Classifier) -> None:
    sample = sample_of(classifier)
    gates = sample.gates()
    gates[0, 1] = 0
    result = path_gradients(sample, gates, 2)
    assert (result[:, 0, 1] == 0).all()
    assert (np.abs(result).sum((0, 2)) > 0).all()


def test_gates_per_row_with_any_batch_size(classifier: Classifier) -> None:
    split = encoded(classifier)
    gates = torch.rand(6, len(attention_sites(classifier.base)), 3)
    one_batch = gate_gradients(sample_of(classifier, batch_size=6, split=split), gates)
    small_batches = gate_gradients(sample_of(classifier, batch_size=2, split=split), gates)
    assert_equal_up_to_rounding(small_batches, one_batch, FLOAT64)
    losses = row_losses(sample_of(classifier, batch_size=6, split=split), gates)
    for row in range(6):
        single_row = sample_of(classifier, batch_size=1, split=split).subset(np.array([row]))
        assert_equal_up_to_rounding(row_losses(single_row, gates[row]), losses[row], FLOAT64)
