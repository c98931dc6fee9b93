"""The average precision of each label, from its probabilities: how well they rank the rows, without any threshold.

With one label per row, each label is compared with all others.

    N rows, C labels
"""

from __future__ import annotations

import numpy as np

from finetune.evaluation.bootstrap import interval_note
from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.ranking_metrics import RankedRows
from finetune.evaluation.scored_rows import ScoredRows
from finetune.evaluation.weighted_bootstrap import bias_corrected_bounds, random_weights
from finetune.runs.results import MetricValue

# With fewer rows of a label, the interval of its average precision is too narrow; see weighted_bootstrap.py.
MIN_LABEL_ROWS = 20
MAX_SAMPLES, MIN_SAMPLES = 1000, 200
_MAX_WORK = 100_000_000  # resamples times rows times labels, about two seconds
_FEW = f"no interval: fewer than {MIN_LABEL_ROWS} rows have the label"
_MANY = "no interval: computing it for so many rows and labels would take too long"


def class_average_precisions(rows: ScoredRows, *, samples: int, seed: int) -> list[MetricValue]:
    """Return the average precision of each label with its 95 % interval, (C,); undefined if no row has the label.

    Args:
        samples: maximum number of bootstrap resamples.
    """
    labels = rows.indicators
    ranked = RankedRows(labels, rows.scores)
    values = ranked.average_precisions(np.ones(len(rows)))
    if interval_note(len(rows)):
        return [MetricValue(none_if_undefined(value)) for value in values]
    samples = min(samples, MAX_SAMPLES, _MAX_WORK // labels.size)
    has_intervals = _MAX_WORK // labels.size >= MIN_SAMPLES
    resampled = np.array(
        [ranked.average_precisions(weights) for weights in random_weights(len(rows), samples * has_intervals, seed)]
    ).reshape(-1, len(values))
    cells = []
    for value, column, support in zip(values, resampled.T, labels.sum(0), strict=True):
        if support and support >= MIN_LABEL_ROWS and has_intervals:
            cells.append(MetricValue(float(value), *bias_corrected_bounds(float(value), column, len(rows))))
        else:
            note = "" if not support else _FEW if support < MIN_LABEL_ROWS else _MANY
            cells.append(MetricValue(none_if_undefined(value), note=note))
    return cells
