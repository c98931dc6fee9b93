"""Logits without each head: the fast way against one gated forward pass for each head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from finetune.errors import ModelError
from finetune.families import FAMILIES, attention_sites
from finetune.heads import ablation as module
from finetune.heads.ablation import MEASURES, Ablation, ablation
from finetune.heads.sample import gated_logits
from finetune.heads.shortcuts import FIRST_TOKEN, OWN_ATTENTION
from finetune.lora import Lora
from finetune.modeling import Classifier
from finetune.saving import load_classifier, save_classifier
from tests.helpers import encoded, sample_of, tiny_classifier
from tests.test_families import CONFIGS, NO_LORA, ROLES, SHAPES, build, checkpoint, split_of
from tests.test_gates import bert, bert_lora, small

ALL = frozenset({OWN_ATTENTION, FIRST_TOKEN})
OWN, NEITHER = frozenset({OWN_ATTENTION}), frozenset()
EXPECTED = dict.fromkeys(FAMILIES, ALL)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("lora", [None, Lora(4, 8, 0.0, ROLES)], ids=["full", "lora"])
def test_fast_equals_naive(family: str, lora: Lora | None, tmp_path: Path) -> None:
    if lora is not None and family in NO_LORA:
        pytest.skip(f"{family}: {NO_LORA[family]}")
    classifier = build(checkpoint(family, AutoModel, tmp_path), lora)
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    split = split_of(classifier) if family == "nystromformer" else encoded(classifier, labels=[0, 1, 2, 3, 4, 0])
    sample = sample_of(classifier, 4, batch_size=4, split=split)
    fast, naive = ablation(sample), ablation(sample, fast=False)
    print("SAVED", family, None if fast.savings is None else sorted(fast.savings), np.abs(fast.without-naive.without).max(), np.abs(naive.without).max())
    np.testing.assert_allclose(fast.without, naive.without, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(fast.whole, naive.whole, atol=1e-5, rtol=1e-5)
