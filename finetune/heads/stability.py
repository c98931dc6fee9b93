"""Would other rows, or another training seed, rank the heads alike?

N rows, L layers, H heads
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from finetune.head_results import TauValue

HALVINGS = 100


def split_half_stability(contributions: np.ndarray, *, seed: int = 0) -> TauValue | None:
    """Return Kendall's tau between the rankings of two random halves of the rows, over many halvings.

    The mean and the central 95 % of the halvings. Each half has half of the rows, so the ranking of all of them is
    steadier than this says. Resampling rows with repeats instead would count rows twice and say too much.

    Args:
        contributions: (N, L, H); NaN where a layer lacks the head.

    Returns:
        None for less than four rows or two heads, or where a half tells no head from another.
    """
    rows = contributions.reshape(len(contributions), -1)
    rows = rows[:, ~np.isnan(rows).any(0)]
    if len(rows) < 4 or rows.shape[1] < 2:
        return None
    rng, half, found = np.random.default_rng(seed), len(rows) // 2, []
    for _ in range(HALVINGS):
        shuffled = rng.permutation(len(rows))
        first, second = rows[shuffled[:half]].mean(0), rows[shuffled[half:]].mean(0)
        found.append(stats.kendalltau(first, second).statistic)
    if np.isnan(found).any():
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return TauValue(float(np.mean(found)), float(low), float(high))
