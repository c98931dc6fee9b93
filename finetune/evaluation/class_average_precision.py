"""The average precision of each label, from its probabilities: how well they rank the rows, without any threshold.

With one label per row, each label is compared with all others.

    N rows, C labels
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from finetune.evaluation.intervals import interval_note
from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.ranking_metrics import RankedRows
from finetune.evaluation.scored_rows import ScoredRows
from finetune.evaluation.weighted_bootstrap import bias_corrected_bounds, random_weights
from finetune.runs.results import MetricValue

# With fewer rows of a label, the interval of its average precision is too narrow; see weighted_bootstrap.py.
MIN_LABEL_ROWS = 20
MAX_SAMPLES, MIN_SAMPLES = 500, 200
_MAX_WORK = 100_000_000  # resamples times rows times labels, about two seconds
_FEW = f"no interval: fewer than {MIN_LABEL_ROWS} rows have the label"
_MANY = "no interval: computing it for so many rows and labels would take too long"


def class_average_precisions(rows: ScoredRows, *, samples: int, seed: int) -> list[MetricValue]:
    """Return the average precision of each label with its 95 % interval, (C,); undefined if no row has the label.

    Args:
        samples: maximum number of bootstrap resamples.
    """
    labels = rows.indicators
    support = labels.sum(0)
    values = RankedRows(labels, rows.scores).average_precisions(np.ones(len(rows)))
    cells = [MetricValue(none_if_undefined(value)) for value in values]
    if interval_note(len(rows)):
        return cells
    enough = np.flatnonzero(support >= MIN_LABEL_ROWS)
    samples = min(samples, MAX_SAMPLES, _MAX_WORK // max(1, len(rows) * len(enough)))
    too_many = len(rows) * len(enough) * MIN_SAMPLES > _MAX_WORK
    cells = [replace(cell, note=_FEW if cell.value is not None else "") for cell in cells]
    if not len(enough):
        return cells
    ranked = RankedRows(labels[:, enough], rows.scores[:, enough])
    weights = random_weights(len(rows), 0 if too_many else samples, seed)
    resampled = np.array([ranked.average_precisions(row_weights) for row_weights in weights])
    for position, index in enumerate(enough):
        value = float(values[index])
        bounds = (None, None) if too_many else bias_corrected_bounds(value, resampled[:, position], len(rows))
        cells[index] = MetricValue(value, *bounds, note=_MANY if too_many else "")
    return cells
