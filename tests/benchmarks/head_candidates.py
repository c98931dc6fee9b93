"""Candidates for ranking attention heads, each a function of rows, a number of row passes and a seed.

A row pass is one forward and one backward pass of one row with gates. A forward pass alone counts as a third of it.
Every candidate keeps to the number of row passes that it gets; `gradient_layer_norm` at half of it is the baseline.

    N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.heads.attention_maps import entropy
from finetune.heads.gated_forward import (
    GatedRows,
    gate_gradients,
)

Ranker = Callable[[GatedRows, int, int], np.ndarray]  # rows, row passes, seed -> values (L, H)
# Loss of each row, (B,), from logits (B, C), the batch, and the positions of its rows in the sample.
Objective = Callable[[Tensor, LocalBatch, np.ndarray], Tensor]


def drawn(sample: GatedRows, rows: int, seed: int) -> GatedRows:
    """Return the sample with this number of its rows, drawn at random: each once before any is repeated."""
    rng, indices = np.random.default_rng(seed), list[np.ndarray]()
    while sum(map(len, indices)) < rows:
        indices.append(rng.permutation(sample.rows))
    return sample.subset(np.concatenate(indices)[:rows])


def layer_normalized_table(values: np.ndarray) -> np.ndarray:
    """Return the values of each layer divided by their Euclidean norm."""
    norm = np.sqrt(np.nansum(values**2, axis=1, keepdims=True))
    normalized: np.ndarray = values / np.where(norm > 0, norm, 1)
    return normalized


def hies(sample: GatedRows, row_passes: int, seed: int, alpha: float = 0.5) -> np.ndarray:
    """Return HIES: alpha times the importance plus (1 - alpha) times (1 - attention entropy), both scaled to 0 to 1.

    Choi et al. 2025 (arXiv 2510.13832), equations 1 and 2; the importance is that of Michel et al. 2019, E|g|. The
    authors choose alpha for each task and compression ratio; here it is fixed.
    """
    rows = drawn(sample, 3 * row_passes // 4, seed)  # a row costs 1 for its gradient and 1 / 3 for its entropy
    importance = np.abs(gate_gradients(rows)).mean(0)
    focus = entropy(rows).values  # minus the entropy
    return alpha * scaled_to_1(importance) + (1 - alpha) * scaled_to_1(focus)


def scaled_to_1(values: np.ndarray) -> np.ndarray:
    """Return the values, scaled linearly so that the smallest is 0 and the largest is 1."""
    low, high = np.nanmin(values), np.nanmax(values)
    scaled: np.ndarray = (values - low) / (high - low if high > low else 1)
    return scaled
