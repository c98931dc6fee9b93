"""Would other rows, or another training seed, rank the heads alike?

N rows, F folds, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from scipy import stats

from finetune.head_results import TauValue
from finetune.heads.estimate import Estimate

HALVINGS = 100


def split_half_stability(
    contributions: np.ndarray, *, finish: Callable[[Estimate], Estimate] = lambda estimate: estimate, seed: int = 0
) -> TauValue | None:
    """Return Kendall's tau between the rankings of two random halves of the rows, over many halvings.

    The mean and the central 95 % of the halvings. Each half has half of the rows, so the ranking of all of them is
    steadier than this says. Resampling rows with repeats instead would count rows twice and say too much.

    Args:
        contributions: (N, L, H); NaN where a layer lacks the head.
        finish: what is done to a mean over rows before heads are ranked by it, such as a norm a layer.

    Returns:
        None for less than four rows or two heads, or where a half tells no head from another.
    """
    there = ~np.isnan(contributions).any(0)  # (L, H)
    if len(contributions) < 4 or there.sum() < 2:
        return None

    def ranked(rows: np.ndarray) -> np.ndarray:
        values: np.ndarray = finish(Estimate(contributions[rows].mean(0))).values[there]
        return values

    rng, half, found = np.random.default_rng(seed), len(contributions) // 2, []
    for _ in range(HALVINGS):
        shuffled = rng.permutation(len(contributions))
        found.append(stats.kendalltau(ranked(shuffled[:half]), ranked(shuffled[half:])).statistic)
    if np.isnan(found).any():
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return TauValue(float(np.mean(found)), float(low), float(high))


def fold_stability(folds: np.ndarray) -> TauValue | None:
    """Return Kendall's tau between the values of each two folds (F, L, H): the mean, the lowest and the highest.

    Each fold has a part of the rows only, so the mean of all folds is steadier than this says.

    Returns:
        None for less than two folds or two heads, or where a fold tells no head from another.
    """
    there = ~np.isnan(folds).any(0)
    if len(folds) < 2 or there.sum() < 2:
        return None
    found = [stats.kendalltau(first[there], second[there]).statistic for first, second in combinations(folds, 2)]
    return None if np.isnan(found).any() else TauValue(float(np.mean(found)), float(min(found)), float(max(found)))
