"""How reliable the probabilities of a split are: calibration, risk-coverage area, prediction sets.

N rows, C labels
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.errors import DataError
from finetune.evaluation.calibration import (
    brier_scores,
    calibration_error,
    confidences_of,
    mean_with_interval,
    risk_coverage_area,
)
from finetune.evaluation.prediction import Predictions
from finetune.models.conformal import Limits
from finetune.models.outputs import OutputRules
from finetune.progress import stage
from finetune.runs.results import ConfidenceScores, MetricValue, SetScores

Array = NDArray[Any]
COVERAGES = (0.8, 0.9, 0.95)
_MAX_ROWS = 50_000  # for calibration and risk-coverage area, whose intervals take 0.1 ms per row
_FOLDS = 10
_FITTED = "These rows also fitted the limits, so each tenth of them was scored with limits from the other nine tenths."
_CALIBRATED = " The temperature is the final one, so the calibration error is slightly optimistic."


def confidence_scores(predictions: Predictions, *, fitted: bool, samples: int, seed: int) -> ConfidenceScores:
    """Return how reliable the probabilities are.

    Args:
        fitted: whether the temperature and the prediction sets were fitted to these rows.
        samples: number of bootstrap resamples.
    """
    rules, labels = predictions.rules, predictions.labels
    logits = predictions.logits.numpy()
    probabilities = rules.probabilities(logits)
    options = {"samples": samples, "seed": seed}
    sets = _set_scores(rules, logits, labels, fitted=fitted, seed=seed)
    note = _FITTED if fitted and sets else ""
    if rules.problem_type == "regression":
        return ConfidenceScores(sets=sets, note=note)
    note += _CALIBRATED if note and rules.temperature != 1 else ""
    if len(labels) > _MAX_ROWS:
        kept = np.random.default_rng(seed).choice(len(labels), _MAX_ROWS, replace=False)
        probabilities, labels = probabilities[kept], labels[kept]
    rows = confidences_of(probabilities, labels, rules.decisions(probabilities))
    with stage("computing the calibration of the probabilities"):
        return ConfidenceScores(
            calibration_error(rows, **options),
            mean_with_interval(brier_scores(probabilities, labels), **options),
            risk_coverage_area(rows, **options) if labels.ndim == 1 else None,
            sets,
            note,
        )


def _set_scores(rules: OutputRules, logits: Array, labels: Array, *, fitted: bool, seed: int) -> list[SetScores]:
    """Return what prediction sets do at each of COVERAGES that can be promised; none for several labels per row."""
    if rules.conformal is None or rules.problem_type == "multi_label_classification":
        return []
    result, probabilities = [], rules.probabilities(logits)
    for coverage in COVERAGES:
        with suppress(DataError):  # too few validation rows for this coverage
            parts = _parts(rules, logits, labels, seed if fitted else None)
            limits = [(rows, rule.limits(coverage)) for rows, rule in parts]
            result.append(_scores_of_sets(coverage, limits, probabilities, labels))
    return result


def _parts(rules: OutputRules, logits: Array, labels: Array, seed: int | None) -> Iterator[tuple[Array, OutputRules]]:
    """Yield the numbers of rows, and rules that were not fitted to them.

    Args:
        seed: of the folds, if the rules were fitted to these rows; None: they were not.
    """
    if seed is None:
        yield np.arange(len(labels)), rules
        return
    folds = np.random.default_rng(seed).permutation(len(labels)) % _FOLDS
    for fold in range(min(_FOLDS, len(labels))):
        others = folds != fold
        yield np.flatnonzero(~others), rules.with_scores_of(logits[others], labels[others], seed=seed)


def _share(values: Array) -> MetricValue:
    """Return the share of values that are true, with its Wilson interval."""
    result = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return MetricValue(float(values.mean()), float(result.low), float(result.high))


def _scores_of_sets(
    coverage: float, parts: list[tuple[Array, Limits]], probabilities: Array, labels: Array
) -> SetScores:
    """Return what sets with these limits do; each limit is for the rows with these numbers."""
    if labels.dtype.kind == "f":
        half = np.empty(len(labels))
        for rows, limits in parts:
            assert limits.error is not None
            half[rows] = limits.error[0]
        covered = np.abs(probabilities[:, 0] - labels) <= half
        return SetScores(coverage, _share(covered), float(2 * half.mean()))
    sets = np.empty(probabilities.shape, dtype=bool)
    for rows, limits in parts:
        sets[rows] = limits.label_sets(probabilities[rows])
    right, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    answered = sizes == 1
    return SetScores(
        coverage,
        _share(right),
        float(sizes.mean()),
        float(answered.mean()),
        _share(right[answered]) if answered.any() else None,
        float((sizes == 0).mean()),
    )
