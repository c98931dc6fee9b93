"""Temperature scaling (Guo et al. 2017, section 4.2), and what it gains on rows that did not fit the temperature.

N rows, C labels
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from finetune.evaluation.calibration import (
    brier_scores,
    calibration_error,
    confidences_of,
    log_losses,
    mean_with_interval,
)
from finetune.models.outputs import OutputRules
from finetune.runs.outputs import CalibrationFigures, TemperatureFit

Array = NDArray[Any]
RANGE = (0.05, 20.0)  # of temperatures
FOLDS = 5
MIN_ROWS = 100


def best_temperature(rules: OutputRules, logits: Array, labels: Array) -> float:
    """Return the temperature in RANGE with the lowest log loss for logits (N, C).

    The targets are smoothed as in Platt 1999: a share of 1 / (N + 2) of each is spread evenly over the labels.
    Otherwise rows without a wrong prediction would have a temperature of almost 0.
    """
    share = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        probabilities = replace(rules, temperature=float(np.exp(log_temperature))).probabilities(logits)
        return float(
            (1 - share) * log_losses(probabilities, labels).mean() + share * _uniform_loss(probabilities, labels)
        )

    low, high = np.log(RANGE)
    result = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(result.x)), 4)


def _uniform_loss(probabilities: Array, labels: Array) -> float:
    """Return the mean log loss if every label is as frequent as the others."""
    if labels.ndim == 2:
        return float((log_losses(probabilities, labels) + log_losses(probabilities, 1 - labels)).mean() / 2)
    return float(-np.log(np.maximum(probabilities, np.finfo(float).tiny)).mean())


def fit_temperature(rules: OutputRules, logits: Array, labels: Array, *, samples: int, seed: int) -> TemperatureFit:
    """Return the temperature of the validation rows, and whether it helps on held-out folds of them.

    Each fold of the rows is scored with the temperature that is fitted to the other folds. It is applied if the mean
    log loss of all folds is lower than at temperature 1. In 50 random choices of 100 and of 200 validation rows of
    models for TREC and Banking77, that never made the log loss of the other rows higher; with 20 and 50 rows it did.

    Args:
        rules: of the model; its temperature is ignored.
        samples: number of bootstrap resamples for the intervals.
    """
    rules = replace(rules, temperature=1.0, thresholds=None)
    rows = len(labels)
    if rows < MIN_ROWS:
        return TemperatureFit(
            rows, 1.0, applied=False, reason=f"{rows} validation rows are too few ({MIN_ROWS} needed)"
        )
    before = rules.probabilities(logits)
    after = _cross_fitted(rules, logits, labels, seed)
    decrease = log_losses(before, labels) - log_losses(after, labels)
    helps = bool(decrease.mean() > 0)
    options = {"samples": samples, "seed": seed}
    return TemperatureFit(
        rows,
        best_temperature(rules, logits, labels),
        applied=helps,
        reason="" if helps else "the log loss on held-out folds is not lower",
        before=_figures(before, labels, options),
        after=_figures(after, labels, options),
        decrease=mean_with_interval(decrease, **options),
    )


def _figures(probabilities: Array, labels: Array, options: dict[str, int]) -> CalibrationFigures:
    """Return log loss, calibration error and Brier score with their intervals."""
    return CalibrationFigures(
        mean_with_interval(log_losses(probabilities, labels), **options),
        calibration_error(confidences_of(probabilities, labels), **options),
        mean_with_interval(brier_scores(probabilities, labels), **options),
    )


def _cross_fitted(rules: OutputRules, logits: Array, labels: Array, seed: int) -> Array:
    """Return the probabilities of each fold at the temperature of the other folds, (N, C)."""
    folds = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    result = np.empty(logits.shape)
    for fold in range(FOLDS):
        inside = folds == fold
        scaled = replace(rules, temperature=best_temperature(rules, logits[~inside], labels[~inside]))
        result[inside] = scaled.probabilities(logits[inside])
    return result
