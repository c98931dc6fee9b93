"""Area under the ROC curve and average precision of many labels for many sets of row weights.

scikit-learn sorts the rows in every call. Here they are sorted once, so that the bootstrap of 77 labels takes seconds
instead of minutes. The values are those of scikit-learn with `sample_weight`.

    N rows, C labels
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class RankedRows:
    """The rows in the order of each label's probability, highest first."""

    def __init__(self, labels: Array, scores: Array) -> None:
        """`labels`: 0 or 1, (N, C); `scores`: probabilities, (N, C)."""
        self.order = np.argsort(-scores, axis=0, kind="stable")  # (N, C)
        ranked = np.take_along_axis(scores, self.order, axis=0)
        self.labels = np.take_along_axis(labels, self.order, axis=0)  # (N, C)
        # Rows with equal probabilities are one step of a curve, which ends at the last of them.
        last = np.ones(ranked.shape, dtype=bool)
        last[:-1] = ranked[:-1] != ranked[1:]
        self.ends = [np.flatnonzero(column) for column in last.T]

    def areas(self, weights: Array) -> Array:
        """Return the area under the ROC curve of each label, (C,), for row weights (N,); NaN if it is undefined."""
        return np.array([_area(hits, others) for hits, others in self._curves(weights)])

    def average_precisions(self, weights: Array) -> Array:
        """Return the average precision of each label, (C,), for row weights (N,); NaN if it is undefined."""
        return np.array([_average_precision(hits, others) for hits, others in self._curves(weights)])

    def _curves(self, weights: Array) -> list[tuple[Array, Array]]:
        """Return, for each label, the weight of the rows with and without it down to the end of each step."""
        ranked = weights[self.order]  # (N, C)
        hits = np.cumsum(ranked * self.labels, axis=0)
        all_rows = np.cumsum(ranked, axis=0)
        return [(hits[ends, label], all_rows[ends, label] - hits[ends, label]) for label, ends in enumerate(self.ends)]


def _area(hits: Array, others: Array) -> float:
    if hits[-1] <= 0 or others[-1] <= 0:
        return float("nan")
    return float(np.trapezoid(np.append(0, hits), np.append(0, others)) / (hits[-1] * others[-1]))


def _average_precision(hits: Array, others: Array) -> float:
    if hits[-1] <= 0:
        return float("nan")
    rows = hits + others
    precision = np.divide(hits, rows, out=np.zeros(len(hits)), where=rows > 0)
    return float(np.diff(hits, prepend=0) @ precision / hits[-1])
