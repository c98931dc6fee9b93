"""Confidence intervals of a series of runs that hold both sources of uncertainty: the seeds and the evaluation rows.

The model is that of Obuchowski and Rockette (1995, Communications in Statistics: Simulation and Computation 24:285),
made for several readers who judge the same cases: here the readers are seeds and the cases are rows. The score of
seed i is

    score_i = mean + seed_i + rows_i,    i = 1 ... S

where seed_i varies independently from seed to seed, and rows_i, the error from having a sample of rows, has the
covariance Cov between any two seeds, because all seeds are scored on the same rows. With s^2, the variance of the
scores over the seeds, the mean score has the variance

    Var = s^2 / S + max(Cov, 0)

s^2 / S alone, as in a t interval over seeds, omits the error that all seeds share; an interval over rows alone omits
the seeds. The interval is mean +- t sqrt(Var), where t has

    df = (S - 1) Var / (s^2 / S)

degrees of freedom: S - 1 if all variance is from the seeds, and infinitely many if all is from the rows. Hillis (2007,
Statistics in Medicine 26:596) has the square of the ratio Var / (s^2 / S), as Satterthwaite (1946) does. With three
seeds that covers too little where most of the variance is from the seeds: an s^2 that is small by chance makes Var too
small and the square of the ratio far too large. tests/benchmarks/two_level.py simulates both, and the guide "Many runs"
has the results.

Cov comes from the influence of each row on the score of every seed (`row_covariance`, influence.py).

    S seeds or models, N rows, X metrics
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from finetune.evaluation.intervals import interval_note
from finetune.evaluation.paired_differences import Array, scores_and_covariances
from finetune.runs.results import MetricValue

Range = tuple[float, float]
Pair = tuple[Sequence[float] | Array, Sequence[float] | Array]
_LEVEL = 0.975  # quantile of a two-sided 95 % interval


def row_covariance(
    predictions: Sequence[Array],
    references: Array,
    metrics: Sequence[str],
    *,
    num_classes: int,
) -> dict[str, Array]:
    """Return, by metric, the covariance (S, S) of the scores of S models over samples of rows.

    The covariance is NaN if there are too few rows, or if the metric is undefined.

    Args:
        predictions: of each model: class ids (N,), 0/1 label sets (N, C), or values (N,).
        references: the labels in the same form.
        metrics: names of metrics of the problem type.
    """
    if interval_note(len(references)):
        return {name: np.full((len(predictions), len(predictions)), np.nan) for name in metrics}
    _, covariances = scores_and_covariances(predictions, references, metrics, num_classes)
    return dict(zip(metrics, covariances, strict=True))


def series_interval(scores: Sequence[float] | Array, row_covariance: Array, bounds: Range | None = None) -> MetricValue:
    """Return the mean score of a series and its 95 % interval for another seed and other rows.

    With one seed, the interval holds the rows only. There is none if the covariance is NaN, or if no score varies.

    Args:
        scores: of each seed, (S,).
        row_covariance: of the scores over samples of rows, (S, S).
        bounds: the values that the metric can have. The interval is then computed for log((x - low) / (high - x)), with
            the standard error from the delta method, and transformed back, so that it stays inside of the bounds and is
            wider on the side where the metric has more room.
    """
    values = np.asarray(scores, dtype=float)  # (S,)
    mean = float(values.mean())
    variance, degrees = _variance([values], _shared(row_covariance))
    return _interval(mean, variance, degrees, bounds)


def difference_interval(scores: Pair, covariance: Array) -> MetricValue:
    """Return second minus first mean score with its 95 % interval, for two series (or runs) scored on the same rows.

    With A the first and B the second series, and Cov_AB the mean covariance between a seed of A and a seed of B:

        V = s_A^2 / S_A + s_B^2 / S_B
        Var = V + max(Cov_A + Cov_B - 2 Cov_AB, 0)
        df = Var V / ((s_A^2 / S_A)^2 / (S_A - 1) + (s_B^2 / S_B)^2 / (S_B - 1))

    Without error of the rows, df are those of Welch's t-test.

    The seeds of A and B are independent. A series of one run has no s^2, and its variance over rows instead of Cov: the
    interval is then for that run, and holds its rows but not other seeds.

    Args:
        scores: of each seed of the first series, (S_A,), and of the second, (S_B,).
        covariance: of all scores over samples of rows, the first series before the second, (S_A + S_B, S_A + S_B).
    """
    return _interval(*_difference(scores, covariance), None)


def difference_p_value(scores: Pair, covariance: Array) -> float | None:
    """Return the two-sided p-value of the t-test that belongs to `difference_interval`, or None if it has no interval.

    It is below 0.05 where the interval does not contain 0.
    """
    mean, variance, degrees = _difference(scores, covariance)
    if not (variance > 0 and np.isfinite(mean)):
        return None
    return float(2 * stats.t.sf(abs(mean) / variance**0.5, degrees))


def _difference(scores: Pair, covariance: Array) -> tuple[float, float, float]:
    """Return second minus first mean score, its variance and its degrees of freedom."""
    first, second = (np.asarray(values, dtype=float) for values in scores)
    split = len(first)
    between = float(covariance[:split, split:].mean())
    shared = _shared(covariance[:split, :split]) + _shared(covariance[split:, split:]) - 2 * between
    return float(second.mean() - first.mean()), *_variance([first, second], shared)


def _shared(covariance: Array) -> float:
    """Return the mean covariance between two different models (S, S); for a single model, its variance."""
    if len(covariance) == 1:
        return float(covariance[0, 0])
    return float(covariance[~np.eye(len(covariance), dtype=bool)].mean())


def _variance(series: Sequence[Array], shared: float) -> tuple[float, float]:
    """Return the variance of a mean score, or of a difference of two, and its degrees of freedom.

    Args:
        series: the scores of each series, (S,).
        shared: the variance from the rows.
    """
    parts = [(values.var(ddof=1) / len(values), len(values) - 1) for values in series if len(values) > 1]
    seeds = float(sum(part for part, _ in parts))
    variance = seeds + max(shared, 0.0)
    uncertain = float(sum(part**2 / degrees for part, degrees in parts))
    return variance, variance * seeds / uncertain if uncertain > 0 else float("inf")


def _interval(mean: float, variance: float, degrees: float, bounds: Range | None) -> MetricValue:
    """Return a mean with its t interval; the value is None if it is undefined."""
    if not np.isfinite(mean):
        return MetricValue(None)
    if not variance > 0:  # also NaN
        return MetricValue(mean)
    width = float(stats.t.ppf(_LEVEL, degrees)) * variance**0.5
    if bounds is None:
        return MetricValue(mean, mean - width, mean + width)
    low, high = bounds
    if not low < mean < high:
        return MetricValue(mean)
    center = np.log((mean - low) / (high - mean))
    slope = (high - low) / ((mean - low) * (high - mean))  # derivative of the transform
    ends = center + slope * width * np.array([-1.0, 1.0])
    below, above = low + (high - low) / (1 + np.exp(-ends))
    return MetricValue(mean, float(below), float(above))
