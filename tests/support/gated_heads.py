"""Heads to prune, and the logits with gates of 0 on them."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.head_gates import head_gates
from tests.conftest import SENTENCES

TEXTS = [(sentence,) for sentence in SENTENCES]  # of different lengths, so that rows are padded
PRUNED = {0: [1], 1: [0, 2]}  # by layer


def gated_logits(classifier: Classifier, heads: dict[int, list[int]]) -> Tensor:
    """Return the logits of TEXTS with gates of 0 on these heads."""
    sites = attention_sites(classifier.base)
    gates = torch.ones(len(sites), max(site.num_heads for site in sites))
    for layer, numbers in heads.items():
        gates[layer, numbers] = 0
    with head_gates(classifier.base, sites, gates):
        return logits_of(classifier, TEXTS, torch.device("cpu"))
