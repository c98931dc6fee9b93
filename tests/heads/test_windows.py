"""Head analysis of rows that the model reads in several windows: every value is per row, as without windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from finetune.data.batching import load_batches
from finetune.errors import ModelError
from finetune.heads import explain
from finetune.heads.ablation import PREFIX, ablation
from finetune.heads.analysis import AnalysisSettings
from finetune.heads.attention_maps import confidence
from finetune.heads.explain_rows import explain_rows
from finetune.heads.fast_ablation import prefix_reuse
from finetune.heads.gated_forward import GatedRows, gate_gradients, gated_logits
from finetune.models.classifier import Classifier
from tests.heads.test_analysis import section_with
from tests.support.helpers import assert_equal_up_to_rounding, sample_of
from tests.support.windows import LONG_TEXTS, windowed

ORDER = [(0, 0), (0, 1), (1, 1), (1, 2), (0, 2), (1, 0)]


@pytest.fixture(scope="module")
def sample(tiny_bert: Path) -> GatedRows:
    classifier, split = windowed(tiny_bert)
    return sample_of(classifier, batch_size=5, split=split)


def one_by_one(sample: GatedRows) -> GatedRows:
    return sample_of(sample.classifier, batch_size=1, split=sample.split)


def test_each_row_has_its_own_gates(sample: GatedRows) -> None:
    gates = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    together = gated_logits(sample, gates)
    for row in range(5):
        alone = gated_logits(sample.subset(np.array([row])), gates[row])  # (L, H) gates
        assert_equal_up_to_rounding(together[row], alone[0])
    gradients = gate_gradients(sample, gates)
    assert np.abs(gradients).max(axis=(1, 2)).min() > 0
    assert_equal_up_to_rounding(gradients, gate_gradients(one_by_one(sample), gates), 1e-5)


def test_ablation_with_shared_work_equals_that_with_gates(sample: GatedRows) -> None:
    fast, slow = ablation(sample), ablation(sample, fast=False)
    assert PREFIX in fast.savings
    assert_equal_up_to_rounding(fast.without, slow.without, 1e-5)
    assert_equal_up_to_rounding(fast.full, slow.full, 1e-5)


def test_attention_is_averaged_over_the_windows(sample: GatedRows) -> None:
    together, alone = confidence(sample), confidence(one_by_one(sample))
    assert_equal_up_to_rounding(together.values, alone.values)


def test_effects_of_heads_are_those_of_the_whole_row(sample: GatedRows) -> None:
    classifier = sample.classifier
    inputs = explain.tokenized(classifier, [LONG_TEXTS])
    targets = torch.tensor([0, 1, 1, 0, 1])
    exact = explain.head_effects(classifier, inputs, targets)
    reuse = prefix_reuse(classifier.base, sample.sites, shared_attention=True)
    assert_equal_up_to_rounding(explain.head_effects(classifier, inputs, targets, reuse=reuse), exact, 1e-5)
    for row, text in enumerate(LONG_TEXTS):
        alone = explain.tokenized(classifier, [[text]])
        assert_equal_up_to_rounding(
            explain.head_effects(classifier, alone, targets[row : row + 1])[0], exact[row], 1e-5
        )
        first_order = explain.first_order_head_effects(classifier, alone, targets[row : row + 1])[0]
        assert_equal_up_to_rounding(
            first_order, explain.first_order_head_effects(classifier, inputs, targets)[row], 1e-5
        )


def test_tokens_are_explained_for_rows_with_one_window(sample: GatedRows) -> None:
    classifier: Classifier = sample.classifier
    (batch,) = load_batches(sample.split, [np.arange(5)], classifier.tokenizer, device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"tokens are explained for texts that the model reads at once.* to 16 tokens"):
        explain.token_attributions(classifier, batch.inputs)
    settings = AnalysisSettings("accuracy", 5, seed=0)
    splits = {"train": sample.split, "validation": sample.split}
    result = explain_rows(classifier, splits, section_with(explained_rows=7), settings, ORDER, Accelerator(cpu=True))
    assert result is not None
    assert [row.tokens is not None for row in result.rows] == [False, True, False, True, False]
    assert result.rows[1].tokens == LONG_TEXTS[1].split()
    assert "3 of 5 rows have several windows: their tokens and attention are not shown." in result.notes
