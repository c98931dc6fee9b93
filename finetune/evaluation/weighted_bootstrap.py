"""The 95 % interval of any metric that is a function of the weights of rows: a bias-corrected Bayesian bootstrap.

The Bayesian bootstrap (Rubin 1981, Annals of Statistics 9:130) gives each row a random weight instead of drawing rows.
All rows keep a weight above 0, so no class or rank drops out of a resample. The percentiles are corrected for the bias
of the resampled values (Efron 1981, Canadian Journal of Statistics 9:139), and widened for few rows (Hesterberg 2015,
The American Statistician 69:371).

For a mean, the correction gives almost the interval that has the right skewness to second order (Hall 1988): the
weights make the skewness of the resampled means twice that of the mean, and the bias correction does the rest.

    N rows, R resamples
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]
Bounds = tuple[float | None, float | None]
_LEVEL = 0.975  # quantile of a two-sided 95 % interval
_MIN_DEFINED = 0.9  # of the resamples; if the metric is undefined in more of them, there is no interval
_BLOCK = 4_000_000  # maximum number of weights in memory


def interval_of(metric: Callable[[Array], float], rows: int, *, samples: int, seed: int) -> Bounds:
    """Return the 95 % interval (low, high) of a metric; (None, None) if it is undefined or never varies.

    A metric of a rare class rests on the rows of that class: with fewer than about 20 of them, an interval of ROC AUC
    or average precision is too narrow. So is any interval of 50 rows of which almost all are right: in simulations,
    that of log loss covered 77 to 79 %, that of ROC AUC 40 %.

    Args:
        metric: returns the metric for non-negative weights of the rows, (N,), whose sum is N; NaN if it is undefined.
            With a weight of 1 for each row it must be the metric itself.
        rows: number of rows N.
        samples: number of resamples R.
    """
    value = float(metric(np.ones(rows)))
    resampled = np.array([float(metric(weights)) for weights in random_weights(rows, samples, seed)])
    return bias_corrected_bounds(value, resampled, rows)


def random_weights(rows: int, samples: int, seed: int) -> Iterator[Array]:
    """Yield the weights of the rows, (N,), in each resample; their sum is N."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(rows, 1))
    for start in range(0, samples, block):
        drawn = rng.standard_exponential((min(block, samples - start), rows))
        yield from drawn * (rows / drawn.sum(axis=1, keepdims=True))


def bias_corrected_bounds(value: float, resampled: Array, rows: int) -> Bounds:
    """Return the 95 % interval from the values of resamples (R,), of which undefined ones (NaN) are skipped.

    Args:
        value: the metric with equal weights.
        rows: number of rows N.
    """
    defined = resampled[np.isfinite(resampled)]
    if rows < 2 or not np.isfinite(value) or len(defined) < max(1, _MIN_DEFINED * len(resampled)):
        return None, None
    if np.ptp(defined) <= 1e-12 * max(1.0, abs(value)):  # equal up to rounding
        return None, None
    below = (np.sum(defined < value) + np.sum(defined == value) / 2) / len(defined)
    bias = stats.norm.ppf(np.clip(below, 1 / len(defined), 1 - 1 / len(defined)))
    width = stats.t.ppf(_LEVEL, rows - 1) * np.sqrt((rows + 1) / (rows - 1))  # weights vary by 1 / (N + 1)
    low, high = np.quantile(defined, stats.norm.cdf(2 * bias + np.array([-width, width])))
    return float(low), float(high)
