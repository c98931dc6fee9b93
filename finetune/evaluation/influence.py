"""The influence of each row on a metric: its derivative by the weight of the row, times the number of rows.

The mean influence is 0, and the mean of the squared influences, over N, is the variance of the metric over samples of N
rows: the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6), which is also the delta method.

    N rows, C classes, K kinds of rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetune.evaluation.metric_formulas import Counts

Array = NDArray[Any]
_STEP = 1e-3  # rows by which a count is changed for a derivative


@dataclass(frozen=True)
class Influence:
    """The influence of a row on a metric, by what the row adds to the counts.

    Attributes:
        hits, predicted, actual: of a row that adds 1 to this count of a class, (C,).
        exact: of a row whose label, or full set of labels, was predicted.
        any_row: of every row.
    """

    hits: Array
    predicted: Array
    actual: Array
    exact: float
    any_row: float

    def of_labels(self) -> Array:
        """Return the influence of a row by its label and its predicted label, (C, C)."""
        influence: Array = np.diag(self.hits + self.exact) + self.actual[:, None] + self.predicted + self.any_row
        return influence

    def of_sets(self, predictions: Array, references: Array) -> Array:
        """Return the influence of rows (N,) with predicted and actual 0/1 label sets, (N, C)."""
        exact = (predictions == references).all(-1)
        per_label = (predictions * references) @ self.hits + predictions @ self.predicted + references @ self.actual
        influence: Array = per_label + exact * self.exact + self.any_row
        return influence


def influence_on(function: Callable[[Counts], Array], total: Counts) -> Influence:
    """Return the influence on one metric that is a function of counts, at the counts of a split."""
    slopes, any_row = derivatives(function, total)
    hits, predicted, actual = slopes[:-1, 0].reshape(3, -1)
    return Influence(hits, predicted, actual, float(slopes[-1, 0]), float(any_row[0]))


def derivatives(function: Callable[[Counts], Array], total: Counts) -> tuple[Array, Array]:
    """Return the influence of each count on the X values of a function, (3 C + 1, X), and that of every row, (X,).

    The derivatives are central differences. A class that does not occur has no influence. A metric does not change if
    all counts are multiplied by the same number, which gives the derivative by the number of rows. The Matthews
    correlation of constant predictions is 0 by definition, and no row has an influence on it.
    """
    classes = len(total.hits)
    values = np.concatenate([total.hits, total.predicted, total.actual, [total.exact]]).astype(float)  # (3 C + 1,)
    occurs = np.append(np.tile(total.predicted + total.actual > 0, 3), True)
    steps = _STEP * np.eye(len(values))[occurs]

    def changed(counts: Array) -> Array:
        hits, predicted, actual = (counts[:, start : start + classes] for start in range(0, 3 * classes, classes))
        return function(Counts(hits, predicted, actual, counts[:, -1], total.rows)).reshape(len(counts), -1)

    with np.errstate(invalid="ignore"):
        difference = changed(values + steps) - changed(values - steps)
    slopes = np.zeros((len(values), difference.shape[1]))
    slopes[occurs] = np.nan_to_num(total.rows * difference / (2 * _STEP))
    return slopes, -(values @ slopes) / total.rows


def pearson_influence(x: Array, y: Array) -> Array:
    """Return the influence of each row on Pearson's correlation, (N,) (Devlin, Gnanadesikan and Kettenring 1975)."""
    x, y = ((values - values.mean()) / values.std() for values in (x, y))
    influence: Array = x * y - np.mean(x * y) * (x * x + y * y) / 2
    return influence


def spearman_influence(x: Array, y: Array) -> Array:
    """Return the influence of each row on Spearman's correlation, (N,), with ties.

    A row changes the correlation of the ranks as in `pearson_influence`, and also the ranks of all other rows.
    """
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    first, second = (rank / rank.std() for rank in ranks)
    scales = [len(x) / rank.std() for rank in ranks]
    correlation = np.mean(first * second)
    of_ranks = [
        _effect_on_ranks(values, slopes) * scale
        for values, slopes, scale in zip(
            (x, y), (second - correlation * first, first - correlation * second), scales, strict=True
        )
    ]
    influence: Array = pearson_influence(first, second) + of_ranks[0] + of_ranks[1]
    return influence


def _effect_on_ranks(values: Array, slopes: Array) -> Array:
    """Return what a row adds, by its effect on the ranks of the other rows, to the mean of rank times slope, (N,).

    A row adds 1 to the rank of each larger value, and 1/2 to that of each equal one.

    Args:
        slopes: of each row, (N,), with a mean of 0.
    """
    order = np.argsort(values, kind="stable")
    ordered, sums = values[order], np.append(0.0, np.cumsum(slopes[order]))
    below, up_to = (sums[np.searchsorted(ordered, values, side)] for side in ("left", "right"))
    effect = -(below + up_to) / 2 / len(values)
    centered: Array = effect - effect.mean()
    return centered
