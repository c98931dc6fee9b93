"""An order of the classes in which confused ones are neighbors, and the pairs of classes that are confused most.

C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class ConfusedPair:
    """Rows of one class that were predicted as another; `share` is their share of the rows with the label."""

    label: str
    predicted: str
    rows: int
    share: float


def confusion_order(confusion: Sequence[Sequence[int]]) -> list[int]:
    """Return the classes in an order in which classes that are confused with each other are neighbors.

    Average-linkage clustering, in which two classes are closer the larger the share of their rows that is predicted as
    the other one, with optimal leaf ordering (Bar-Joseph et al. 2001).

    Args:
        confusion: number of rows with label i that were predicted as j, (C, C).
    """
    counts = np.asarray(confusion, dtype=float)
    if len(counts) < 3:
        return list(range(len(counts)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    clusters = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return [int(index) for index in leaves_list(clusters)]


def confused_pairs(confusion: Sequence[Sequence[int]], names: Sequence[str], count: int) -> list[ConfusedPair]:
    """Return the pairs of different classes with the most rows, at most `count`, most rows first."""
    pairs = [
        ConfusedPair(names[label], names[predicted], rows, rows / sum(row))
        for label, row in enumerate(confusion)
        for predicted, rows in enumerate(row)
        if rows and label != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair.rows, -pair.share))[:count]
