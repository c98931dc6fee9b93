"""95 % intervals of a mean over data sets and seeds.

D data sets, S seeds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; without bounds if there are too few values.

    Attributes:
        low, high: if the data sets and the seeds had been drawn again.
        seeds_low, seeds_high: if only the seeds had been drawn again, for these data sets.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    seeds_low: float | None = None
    seeds_high: float | None = None


def nested_interval(values: Mapping[str, Sequence[float]]) -> Interval:
    """Return the mean over data sets with its t intervals, from as many values (seeds) of each data set.

    In the nested analysis of variance, the variance of the mean is the larger of two mean squares, over D S: that
    between data sets (D - 1 degrees of freedom) and that between the seeds of a data set (D (S - 1)). The first alone
    gives the exact interval if the data sets differ; the second is used where they differ less than their seeds.
    Rows are in the values of the seeds, each of which is measured on its own rows or with its own training.

    Raises:
        ValueError: the data sets have different numbers of values.
    """
    counts = {len(seeds) for seeds in values.values()}
    if len(counts) != 1:
        raise ValueError(f"the data sets have {sorted(counts)} values; they must have the same number")
    table = np.array(list(values.values()), dtype=np.float64)  # (D, S)
    num_sets, num_seeds = table.shape
    mean, means = float(table.mean()), table.mean(1)
    squares = dict[int, float]()  # mean squares by degrees of freedom
    if num_sets > 1:
        squares[num_sets - 1] = num_seeds * float(means.var(ddof=1))
    seeds_width = None
    if num_seeds > 1:
        within, degrees = float(table.var(axis=1, ddof=1).mean()), num_sets * (num_seeds - 1)
        seeds_width = half_width(within, degrees, table.size)
        if num_sets > 1 and within > squares[num_sets - 1]:
            squares = {degrees: within}
    width = max((half_width(square, degrees, table.size) for degrees, square in squares.items()), default=None)
    return Interval(mean, *bounds(mean, width), *bounds(mean, seeds_width))


def half_width(mean_square: float, degrees: int, count: int) -> float:
    """Return half the width of a 95 % t interval of the mean of `count` values."""
    return float(stats.t.ppf(0.975, degrees)) * (mean_square / count) ** 0.5


def bounds(mean: float, width: float | None) -> tuple[float | None, float | None]:
    """Return both bounds of an interval; None without a width."""
    return (None, None) if width is None else (mean - width, mean + width)
