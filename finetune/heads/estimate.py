"""What a measure says of every head: values, their standard errors, and the rows that they come from.

N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.models.architectures import AttentionSite
from finetune.models.head_gates import max_num_heads

Head = tuple[int, int]


@dataclass(frozen=True)
class Estimate:
    """Importance of every head, higher for those that matter more.

    Attributes:
        values: (L, H); NaN where a layer lacks the head, or the measure does not apply to it.
        errors: standard errors over rows, (L, H), or over folds; None where a single row or no row gave the values.
        contributions: each row's share, (N, L, H), of which the values are the mean; None where there is no such.
        note: what must be known of this estimate, such as the gap of an integral.
        order: the heads, least important first, where the values alone do not tell it.
        folds: values of parts of the rows that were learned apart, (F, L, H), of which the values are the mean.
    """

    values: np.ndarray
    errors: np.ndarray | None = None
    contributions: np.ndarray | None = None
    note: str = ""
    order: tuple[Head, ...] | None = None
    folds: np.ndarray | None = None


def mean_over_rows(contributions: np.ndarray, note: str = "") -> Estimate:
    """Return the mean of contributions (N, L, H) over rows, with the standard error of that mean."""
    rows = len(contributions)
    exact = contributions.astype(np.float64)
    errors = exact.std(0, ddof=1) / np.sqrt(rows) if rows > 1 else None
    return Estimate(exact.mean(0), errors, contributions, note)


def layer_normalized(estimate: Estimate) -> Estimate:
    """Return the estimate with each layer's values divided by their Euclidean norm (Molchanov et al. 2017).

    The errors are divided likewise: the norm counts as known. A layer without a value above 0 stays as it is.
    """
    norm = np.sqrt(np.nansum(estimate.values**2, axis=1, keepdims=True))  # (L, 1)
    norm = np.where(norm > 0, norm, 1.0)
    errors = None if estimate.errors is None else estimate.errors / norm
    parts = None if estimate.contributions is None else estimate.contributions / norm
    return Estimate(estimate.values / norm, errors, parts, estimate.note)


def removal_order(values: np.ndarray, sites: Sequence[AttentionSite], *, keep_one: bool = True) -> list[Head]:
    """Return the heads, least important first, as they would be removed.

    Args:
        values: (L, H); of equal values the lower layer and head goes first.
        keep_one: a layer's last head is not removed before all layers are down to one: a layer without any head
            is another model than one with few, and it cannot be cut out.
    """
    heads = [(site.layer, head) for site in sites for head in range(site.num_heads)]
    ranked = sorted(heads, key=lambda at: (np.nan_to_num(values[at], nan=-np.inf), at))
    return last_heads_last(ranked, sites) if keep_one else ranked


def last_heads_last(order: Sequence[Head], sites: Sequence[AttentionSite]) -> list[Head]:
    """Return the order with each layer's last head moved behind those that can be removed."""
    left = {site.layer: site.num_heads for site in sites}
    early: list[Head] = []
    late: list[Head] = []
    for layer, head in order:
        (early if left[layer] > 1 else late).append((layer, head))
        left[layer] -= 1
    return early + late


def as_table(values: np.ndarray | None, sites: Sequence[AttentionSite]) -> list[list[float | None]]:
    """Return (L, H) values as JSON holds them: None where there is no head or no value."""
    wide = max_num_heads(sites)
    return [
        [
            float(values[site.layer, head])
            if values is not None and head < site.num_heads and not np.isnan(values[site.layer, head])
            else None
            for head in range(wide)
        ]
        for site in sites
    ]
