"""Values of loaded metrics with 95 % intervals, from rows drawn with replacement (percentile bootstrap)."""

from __future__ import annotations

import numpy as np

from finetune.evaluation.intervals import interval_note
from finetune.evaluation.loaded_metric import loaded_values
from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.named_intervals import drawn_rows, percentile_interval, too_slow, within_limit
from finetune.evaluation.scored_rows import Array, ScoredRows, UndefinedMetricError
from finetune.recipe.loaded_metrics import value_name
from finetune.runs.results import MetricValue

_NO_NUMBER = "undefined: the metric returned no number"


def loaded_metric_values(source: str, rows: ScoredRows, *, samples: int, seed: int) -> dict[str, MetricValue]:
    """Return the values of a loaded metric by their names in results, with intervals from rows drawn with replacement.

    Args:
        source: path or name on the hub.
    """
    try:
        values = loaded_values(source, rows)
    except UndefinedMetricError as error:
        return {value_name(source): MetricValue(None, note=f"undefined: {error}")}
    known = {name: none_if_undefined(value) for name, value in values.items()}
    if interval_note(len(rows)):
        return {name: MetricValue(value) for name, value in known.items()}

    def values_of(numbers: Array) -> list[float]:
        try:
            drawn = loaded_values(source, rows.select(numbers))
        except UndefinedMetricError:
            drawn = {}
        return [drawn.get(name, float("nan")) for name in values]

    resampled = within_limit(values_of, drawn_rows(len(rows), samples, seed), samples)
    if resampled is None:
        return {name: MetricValue(value, note=too_slow(samples)) for name, value in known.items()}
    bounds = [percentile_interval(column) for column in np.array(resampled).T]
    return {
        name: MetricValue(value, *bound) if value is not None else MetricValue(None, note=_NO_NUMBER)
        for (name, value), bound in zip(known.items(), bounds, strict=True)
    }
