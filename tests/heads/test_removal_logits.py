"""Logits without sets of heads: the fast computation against one gated forward pass per set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads.ablation import removal_logits
from tests.support.families import build, save_checkpoint
from tests.support.helpers import FLOAT64, assert_equal_up_to_rounding, encoded, in_float64, sample_of, tiny_classifier

SETS = [((0, 1),), ((1, 2),), ((0, 0), (0, 2)), ((0, 1), (1, 0)), ((1, 1), (0, 2)), ((1, 0), (1, 1)), ((0, 0), (1, 1))]


# ALBERT's layers share a projection; xmod computes the attention of a layer once per head; XLM has no fast ablation.
@pytest.mark.parametrize("with_gates", [False, True], ids=["all heads", "gates per row"])
@pytest.mark.parametrize("family", ["bert", "albert", "xmod", "xlm"])
def test_fast_equals_naive(family: str, with_gates: bool, tmp_path: Path) -> None:
    classifier = build(save_checkpoint(family, tmp_path), None)
    in_float64(classifier)
    split = encoded(classifier, labels=[0, 1, 2, 3, 4, 0])
    sample = sample_of(classifier, 6, batch_size=4, split=split)
    gates = None
    if with_gates:
        draw = np.random.default_rng(0).integers(0, 2, (6, *sample.gates().shape))
        gates = torch.from_numpy(draw.astype(np.float64))
    full, fast, _ = removal_logits(sample, SETS, gates=gates)
    naive_full, naive, _ = removal_logits(sample, SETS, gates=gates, fast=False)
    assert naive.shape == (6, len(SETS), 5)
    assert_equal_up_to_rounding(full, naive_full, FLOAT64)
    assert_equal_up_to_rounding(fast, naive, FLOAT64)
    effect = np.abs(naive - naive_full[:, None]).max(-1)  # (N, sets)
    assert (effect.max(0) > 1e-4).all()
    if gates is not None:  # a head that is off in a row is switched on there
        on = gates.clone()
        on[:, 0, 1] = 1
        switched_on = removal_logits(sample, SETS[:1], gates=on)[0]
        is_off = gates[:, 0, 1].numpy() == 0
        assert 0 < is_off.sum() < 6
        assert_equal_up_to_rounding(fast[is_off, 0], switched_on[is_off], FLOAT64)


def test_a_silent_head_changes_no_bit(tiny_bert: Path) -> None:
    sample = sample_of(tiny_classifier(tiny_bert), batch_size=4)
    value = sample.classifier.base.get_submodule(sample.sites[0].value)
    with torch.no_grad():
        value.weight[8:16] = 0
        value.bias[8:16] = 0
    full, without, _ = removal_logits(sample, [((0, 1),), ((0, 1), (1, 1)), ((0, 0), (0, 1))])
    assert (without[:, 0] == full).all()
    assert (without[:, 1:] != full[:, None]).any(-1).all()
