"""Tests whether two classifiers differ on the same rows.

N rows, C classes
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from finetune.evaluation.intervals import Array


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test (1947), two-sided.

    The test asks whether, among the rows that only one classifier predicts correctly, each is right equally often.

    Args:
        lost: number of rows that only the first classifier predicts correctly.
        gained: number of rows that only the second predicts correctly.
    """
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def wilcoxon_p_value(differences: Array) -> float:
    """Return the p-value of Wilcoxon's signed-rank test (1945) of paired differences (N,), two-sided."""
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences != 0) else 1.0


def row_f1(predictions: Array, references: Array) -> Array:
    """Return the F1 of each row's predicted 0/1 labels (N, C) against its labels, (N,); 1 if both sets are empty."""
    total = predictions.sum(-1) + references.sum(-1)
    scores: Array = np.where(total > 0, 2 * (predictions * references).sum(-1) / np.maximum(total, 1), 1.0)
    return scores
