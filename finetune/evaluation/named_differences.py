"""The difference of two runs, or of two series of runs, in metrics of scikit-learn; see run_differences.py.

R resamples, S runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.evaluation.intervals import interval_note
from finetune.evaluation.named_intervals import MAX_SAMPLES, WITHOUT_INTERVAL, resampled_values, too_slow
from finetune.evaluation.scored_rows import Array, ScoredRows, UndefinedMetricError
from finetune.evaluation.sklearn_metrics import compute
from finetune.evaluation.two_level_interval import difference_interval, difference_p_value
from finetune.runs.comparison import MetricDifference
from finetune.runs.results import MetricValue


@dataclass(frozen=True)
class NamedDifference:
    """A metric of two runs with the interval of its difference, and the p-value that belongs to the interval."""

    metric: MetricDifference
    p_value: float | None


def named_difference(
    first: Sequence[ScoredRows], second: Sequence[ScoredRows], name: str, *, samples: int, seed: int
) -> NamedDifference:
    """Return second minus first in a metric of scikit-learn.

    Args:
        first, second: the predictions of each run of a series, or of one run, for the same rows.
    """
    models = [*first, *second]
    try:
        values = np.array([compute(name, model) for model in models])
    except UndefinedMetricError as error:
        return NamedDifference(MetricDifference(None, None, MetricValue(None, note=f"undefined: {error}")), None)
    pair = values[: len(first)], values[len(first) :]
    covariance, note = named_covariance(models, name, samples=samples, seed=seed)
    difference = difference_interval(pair, covariance)
    value = MetricValue(difference.value, difference.low, difference.high, note)
    metric = MetricDifference(float(pair[0].mean()), float(pair[1].mean()), value)
    return NamedDifference(metric, difference_p_value(pair, covariance))


def named_covariance(models: Sequence[ScoredRows], name: str, *, samples: int, seed: int) -> tuple[Array, str]:
    """Return the covariance (S, S) of a metric of scikit-learn over resampled rows, NaN if there is none, and why."""
    missing = np.full((len(models), len(models)), np.nan)
    if interval_note(len(models[0])) or name in WITHOUT_INTERVAL:
        return missing, WITHOUT_INTERVAL.get(name, "")
    samples = min(samples, MAX_SAMPLES)
    resampled = resampled_values(models, name, samples=samples, seed=seed)
    if resampled is None:
        return missing, too_slow(samples)
    return covariance_over_rows(resampled), ""


def covariance_over_rows(resampled: Array) -> Array:
    """Return the covariance (S, S) of scores (R, S), over the resamples in which all are defined."""
    defined = resampled[np.isfinite(resampled).all(axis=1)]
    models = resampled.shape[1]
    if len(defined) < 2:
        return np.full((models, models), np.nan)
    return np.cov(defined, rowvar=False).reshape(models, models)
