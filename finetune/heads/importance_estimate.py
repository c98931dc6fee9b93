"""The result of a head method: a value per head, its standard error, and the order of removal.

N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.models.attention_sites import AttentionSite, all_heads
from finetune.models.head_gates import max_num_heads

Head = tuple[int, int]  # (layer, head), both counted from 0


@dataclass(frozen=True)
class Estimate:
    """Importance of every head; a higher value means a more important head.

    Attributes:
        values: (L, H); NaN where a layer lacks the head or the method gives no value.
        errors: standard errors over rows or over folds, (L, H); None if there is only one row or fold.
        contributions: value of each row, (N, L, H), of which `values` is the mean; None if it is no mean over rows.
        note: remarks for the reader, such as the error of an integral.
        order: the heads, least important first; None: in the order of the values.
        folds: values learned on disjoint parts of the rows, (F, L, H), of which `values` is the mean.
    """

    values: np.ndarray
    errors: np.ndarray | None = None
    contributions: np.ndarray | None = None
    note: str = ""
    order: tuple[Head, ...] | None = None
    folds: np.ndarray | None = None


def mean_over_rows(contributions: np.ndarray, note: str = "") -> Estimate:
    """Return the mean of contributions (N, L, H) over rows, with the standard error of that mean."""
    num_rows = len(contributions)
    exact = contributions.astype(np.float64)
    errors = exact.std(0, ddof=1) / np.sqrt(num_rows) if num_rows > 1 else None
    return Estimate(exact.mean(0), errors, contributions, note)


def layer_normalized(estimate: Estimate) -> Estimate:
    """Return the estimate with the values of each layer divided by their Euclidean norm (Molchanov et al. 2017).

    Errors are divided by the same norm, which is treated as a constant. A layer of zeros stays as it is.
    """
    norm = np.sqrt(np.nansum(estimate.values**2, axis=1, keepdims=True))  # (L, 1)
    norm = np.where(norm > 0, norm, 1.0)
    errors = None if estimate.errors is None else estimate.errors / norm
    contributions = None if estimate.contributions is None else estimate.contributions / norm
    return Estimate(estimate.values / norm, errors, contributions, estimate.note)


def removal_order(values: np.ndarray, sites: Sequence[AttentionSite], *, keep_one: bool = True) -> list[Head]:
    """Return the heads in the order in which they would be removed, least important first.

    Args:
        values: (L, H); ties are broken by layer, then head.
        keep_one: remove the last head of a layer only when every layer is down to one head. A layer without heads
            changes the model far more than a layer with few.
    """
    heads = all_heads(sites)
    ranked = sorted(heads, key=lambda head: (np.nan_to_num(values[head], nan=-np.inf), head))
    return last_heads_last(ranked, sites) if keep_one else ranked


def last_heads_last(order: Sequence[Head], sites: Sequence[AttentionSite]) -> list[Head]:
    """Return the order with the last remaining head of each layer moved to the end."""
    remaining = {site.layer: site.num_heads for site in sites}
    early: list[Head] = []
    late: list[Head] = []
    for layer, head in order:
        (early if remaining[layer] > 1 else late).append((layer, head))
        remaining[layer] -= 1
    return early + late


def as_table(values: np.ndarray | None, sites: Sequence[AttentionSite]) -> list[list[float | None]]:
    """Return (L, H) values as nested lists for JSON, with None where there is no head or no value."""
    return [
        [
            float(values[site.layer, head])
            if values is not None and head < site.num_heads and not np.isnan(values[site.layer, head])
            else None
            for head in range(max_num_heads(sites))
        ]
        for site in sites
    ]
