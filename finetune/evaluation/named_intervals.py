"""Values and 95 % intervals of the metrics of scikit-learn.

Their intervals come from the Bayesian bootstrap of weighted_bootstrap.py. A metric without row weights is computed on
rows that are drawn with replacement (percentile bootstrap). Each resample is one call of the metric, so a slow metric
has no interval: `MetricValue.note` says so.

    N rows, R resamples, S models
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from finetune.evaluation.intervals import interval_note
from finetune.evaluation.scored_rows import Array, ScoredRows, UndefinedMetricError
from finetune.evaluation.sklearn_metrics import compute, has_row_weights, of_weights
from finetune.evaluation.weighted_bootstrap import Bounds, bias_corrected_bounds, random_weights
from finetune.progress import stage
from finetune.runs.results import MetricValue

MAX_SECONDS = 60.0  # for the interval of one metric on one split
MAX_SAMPLES = 1000  # resamples of a metric that is computed one resample at a time
_CALLS_TO_ESTIMATE = 10
# No resample has a larger error than the rows, and other rows can, so an interval would never contain their error.
WITHOUT_INTERVAL = {"max_error": "no interval: other rows can have a larger error than any of these"}
Metric = Callable[[ScoredRows], float]  # raises UndefinedMetricError


def named_metric_value(name: str, rows: ScoredRows, *, samples: int, seed: int) -> MetricValue:
    """Return a metric of scikit-learn with its interval, and in the note why one of them is missing."""
    try:
        value = compute(name, rows)
    except UndefinedMetricError as error:
        return MetricValue(None, note=f"undefined: {error}")
    if interval_note(len(rows)) or name in WITHOUT_INTERVAL:
        return MetricValue(value, note=WITHOUT_INTERVAL.get(name, ""))
    resampled = resampled_values([rows], name, samples=samples, seed=seed)
    if resampled is None:
        return MetricValue(value, note=too_slow(samples))
    return MetricValue(value, *_bounds(name, value, resampled[:, 0], len(rows)))


def resampled_values(models: Sequence[ScoredRows], name: str, *, samples: int, seed: int) -> Array | None:
    """Return a metric of scikit-learn of several models on the same resamples, (R, S); None if it is too slow.

    Args:
        models: the predictions of each model for the same rows.
    """
    rows = len(models[0])
    if has_row_weights(name):
        functions = [of_weights(name, model) for model in models]
        resamples = random_weights(rows, samples, seed)
        resampled = within_limit(lambda weights: [of(weights) for of in functions], resamples, samples)
    else:
        metric = partial(compute, name)
        drawn = drawn_rows(rows, samples, seed)
        resampled = within_limit(lambda it: [_or_nan(metric, model.select(it)) for model in models], drawn, samples)
    return None if resampled is None else np.array(resampled)


def paired_difference(pair: tuple[ScoredRows, ScoredRows], name: str, *, samples: int, seed: int) -> MetricValue:
    """Return second minus first in a metric of scikit-learn, with its interval."""
    try:
        first, second = (compute(name, model) for model in pair)
    except UndefinedMetricError as error:
        return MetricValue(None, note=f"undefined: {error}")
    if interval_note(len(pair[0])) or name in WITHOUT_INTERVAL:
        return MetricValue(second - first, note=WITHOUT_INTERVAL.get(name, ""))
    resampled = resampled_values(pair, name, samples=samples, seed=seed)
    if resampled is None:
        return MetricValue(second - first, note=too_slow(samples))
    bounds = _bounds(name, second - first, resampled[:, 1] - resampled[:, 0], len(pair[0]))
    return MetricValue(second - first, *bounds)


def percentile_interval(resampled: Array) -> Bounds:
    """Return the 2.5th and 97.5th percentile of resampled values (R,); (None, None) if they are equal or undefined."""
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 0.9 * len(resampled) or np.ptp(defined) == 0:
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _bounds(name: str, value: float, resampled: Array, rows: int) -> Bounds:
    if has_row_weights(name):
        return bias_corrected_bounds(value, resampled, rows)
    return percentile_interval(resampled)


def drawn_rows(rows: int, samples: int, seed: int) -> Iterator[Array]:
    """Yield the numbers of the rows that each resample draws, (N,)."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, rows, size=rows) for _ in range(samples))


def within_limit(function: Callable[[Array], Any], resamples: Iterable[Array], samples: int) -> list[Any] | None:
    """Return the function of every resample, or None if that takes longer than MAX_SECONDS."""
    started, values = time.perf_counter(), []
    with stage("computing confidence intervals", total=samples) as running:
        for count, resample in enumerate(resamples, 1):
            values.append(function(resample))
            running.advance()
            seconds = time.perf_counter() - started
            if seconds > MAX_SECONDS or (count == _CALLS_TO_ESTIMATE and seconds / count * samples > MAX_SECONDS):
                return None
    return values


def _or_nan(metric: Metric, rows: ScoredRows) -> float:
    try:
        return metric(rows)
    except UndefinedMetricError:
        return float("nan")


def too_slow(samples: int) -> str:
    """Return the note of a metric whose interval would take too long."""
    return f"no interval: computing it {samples:,} times would take longer than {MAX_SECONDS:.0f} s"
