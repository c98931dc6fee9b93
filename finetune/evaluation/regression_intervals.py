"""The 95 % intervals of regression metrics, computed without resampling.

- An error is a mean over rows. Its interval is a t interval, corrected for the skewness of the errors of rows by the
  cubic transformation of Hall (1992, Journal of the Royal Statistical Society B 54:221).
- A correlation has a t interval on Fisher's scale, atanh(r), with the standard error from the influence of each row, so
  that it needs no normal distribution. Pearson's is at least as wide as with Fisher's standard error, 1 / sqrt(N - 3).

tests/benchmarks/intervals.py simulates how often the intervals contain the value of the population.

    N rows
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetune.evaluation.influence import pearson_influence, spearman_influence
from finetune.evaluation.intervals import interval_note
from finetune.evaluation.metric_formulas import REGRESSION, none_if_undefined
from finetune.runs.results import MetricValue

Array = NDArray[Any]
_LEVEL = 0.975  # quantile of a two-sided 95 % interval


def regression_intervals(predictions: Array, references: Array) -> dict[str, MetricValue]:
    """Return all regression metrics of predicted values (N,), with 95 % intervals.

    An undefined metric has the value None and no interval.
    """
    predicted, actual = predictions.astype(float), references.astype(float)
    values = {name: none_if_undefined(metric(predicted, actual)) for name, metric in REGRESSION.items()}
    if interval_note(len(actual)):
        return {name: MetricValue(value) for name, value in values.items()}
    errors = predicted - actual
    intervals = {
        "mean_squared_error": lambda: mean_interval(errors**2),
        "mean_absolute_error": lambda: mean_interval(np.abs(errors)),
        "pearson": lambda: _pearson(predicted, actual),
        "spearman": lambda: _spearman(predicted, actual),
    }
    return {name: MetricValue(None) if value is None else intervals[name]() for name, value in values.items()}


def mean_interval(values: Array) -> MetricValue:
    """Return the mean of values that are not negative, (N,), with its interval."""
    rows, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / rows**0.5
    if error <= 1e-12 * abs(mean):  # equal up to rounding
        return MetricValue(mean, note="no interval: all rows have the same error")
    skewness = float(stats.skew(values, bias=False)) / rows**0.5
    scores = stats.t.ppf([_LEVEL, 1 - _LEVEL], rows - 1)
    if abs(skewness) > 1e-6:  # the inverse of t + s t^2 / 3 + s^2 t^3 / 27 + s / 6, where s is `skewness`
        scores = (np.cbrt(1 + skewness * (scores - skewness / 6)) - 1) * 3 / skewness
    low, high = mean - error * scores
    return MetricValue(mean, max(0.0, float(low)), float(high))


def _pearson(x: Array, y: Array) -> MetricValue:
    return _correlation("pearson", x, y, pearson_influence(x, y), 1 / (len(x) - 3) ** 0.5)


def _spearman(x: Array, y: Array) -> MetricValue:
    return _correlation("spearman", x, y, spearman_influence(x, y), 0.0)


def _correlation(name: str, x: Array, y: Array, influence: Array, least: float) -> MetricValue:
    """Return a correlation with its interval.

    Args:
        influence: of each row, (N,).
        least: the least width of the interval on Fisher's scale, in standard deviations of a normal distribution.
    """
    rows, value = len(x), REGRESSION[name](x, y)
    if 1 - abs(value) < 1e-12:
        return MetricValue(value, note="no interval: the correlation is perfect")
    error = float(np.sqrt(influence @ influence / rows / (rows - 3))) / (1 - value**2)
    width = max(stats.t.ppf(_LEVEL, rows - 2) * error, stats.norm.ppf(_LEVEL) * least)
    low, high = np.tanh(np.arctanh(value) + np.array([-width, width]))
    return MetricValue(value, float(low), float(high))
