from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.models.flops import flops_per_row
from tests.models.test_head_gates import bert
from tests.support.families import build, save_checkpoint, split_of
from tests.support.helpers import encoded

CPU = torch.device("cpu")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_mean_over_rows_equals_the_formula_of_bert(tiny_bert: Path, implementation: str) -> None:
    classifier = bert(tiny_bert)
    classifier.base.set_attn_implementation(implementation)
    split = encoded(classifier)
    assert len(set(split.lengths)) > 3
    width, hidden, layers, labels = 24, 32, 2, 2

    def formula(tokens: int) -> int:
        attention = 4 * tokens * width * width + 2 * tokens * tokens * width
        feed_forward = 2 * tokens * width * hidden
        return 2 * (layers * (attention + feed_forward) + width * width + width * labels)

    expected = float(np.mean([formula(int(tokens)) for tokens in split.lengths]))
    assert flops_per_row(classifier, split, CPU) == round(expected)
    assert not any(module._forward_hooks for module in classifier.model.modules())


def test_the_cost_depends_on_the_product_of_heads_and_key_size(tmp_path: Path) -> None:
    costs = {}
    for heads, head_dim in ((1, 16), (4, 4), (4, 16)):
        folder = tmp_path / f"{heads}-{head_dim}"
        save_checkpoint("multi_head_classifier", folder, num_attention_heads=heads, head_dim=head_dim)
        classifier = build(folder)
        costs[heads, head_dim] = flops_per_row(classifier, split_of(classifier), CPU)
    assert costs[1, 16] == costs[4, 4] < costs[4, 16]
