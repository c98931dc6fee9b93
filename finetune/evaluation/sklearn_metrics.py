"""The metrics of `finetune.recipe.named_metrics`, computed by scikit-learn, for rows that may have weights.

scikit-learn returns 0 or 1 for some metrics that are undefined, with a warning. Here they raise `UndefinedMetricError`
with the reason. Precision, recall and F-beta are an exception, as in metric_formulas.py: a class that is never
predicted has precision 0.

    N rows, C classes, K kinds of rows
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from finetune.evaluation.ranking_metrics import RankedRows
from finetune.evaluation.scored_rows import Array, ScoredRows, UndefinedMetricError
from finetune.recipe.named_metrics import f_beta, find_metric, top_k

Weights = Array | None
Function = Callable[[ScoredRows, Weights], float]
# Means over the labels of their ROC areas or average precisions, which ranking_metrics.py computes for the bootstrap.
_RANKED = (
    *("roc_auc", "roc_auc_ovr", "roc_auc_ovr_weighted", "roc_auc_weighted"),
    *("average_precision", "average_precision_weighted"),
)
_UNWEIGHTED = ("max_error", "roc_auc_ovo", "roc_auc_ovo_weighted")  # scikit-learn has no row weights for them


def compute(name: str, rows: ScoredRows, weights: Weights = None) -> float:
    """Return a metric of `finetune.recipe.named_metrics`.

    Args:
        weights: of the rows, (N,); None: all 1.

    Raises:
        UndefinedMetricError: the metric is undefined for these rows.
    """
    from sklearn import config_context
    from sklearn.exceptions import UndefinedMetricWarning

    checks_off = config_context(assume_finite=True, skip_parameter_validation=True)  # they take most of the time
    with checks_off, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UndefinedMetricWarning)
        try:
            value = float(_function(name)(rows, weights))
        except (UndefinedMetricWarning, ValueError) as error:
            raise UndefinedMetricError(_reason(error)) from error
    if not np.isfinite(value):
        raise UndefinedMetricError("all labels or all predictions of the rows are equal")
    return value


def has_row_weights(name: str) -> bool:
    """Return whether scikit-learn computes the metric for rows with weights."""
    return name not in _UNWEIGHTED


def of_weights(name: str, rows: ScoredRows) -> Callable[[Array], float]:
    """Return a function from row weights (N,) to the metric; NaN where it is undefined.

    The bootstrap calls it thousands of times. If the metric reads only the labels of each row, rows with the same label
    and the same prediction are one kind, and scikit-learn gets K kinds instead of N rows.
    """
    metric = find_metric(name, rows.problem_type)
    assert metric is not None
    if name in _RANKED:
        return _ranked(name, rows)
    if rows.problem_type == "single_label_classification" and not metric.needs_probabilities:
        kind = rows.labels * len(rows.label_names) + rows.predicted
        kinds, first, kind_of = np.unique(kind, return_index=True, return_inverse=True)
        few = rows.select(first)
        return lambda weights: _or_nan(name, few, np.bincount(kind_of, weights, minlength=len(kinds)))
    return lambda weights: _or_nan(name, rows, weights)


def _ranked(name: str, rows: ScoredRows) -> Callable[[Array], float]:
    """Return a function from row weights to a mean over the labels of their ROC areas or average precisions."""
    only_second = rows.labels.ndim == 1 and len(rows.label_names) == 2
    columns = slice(1, 2) if only_second else slice(None)
    labels = rows.indicators[:, columns]
    ranked = RankedRows(labels, rows.scores[:, columns])
    values = ranked.areas if name.startswith("roc_auc") else ranked.average_precisions
    if not name.endswith("_weighted"):
        return lambda weights: float(values(weights).mean())

    def weighted(weights: Array) -> float:
        support = weights @ labels
        return float(values(weights) @ support / support.sum()) if support.sum() else float("nan")

    return weighted


def _or_nan(name: str, rows: ScoredRows, weights: Array) -> float:
    try:
        return compute(name, rows, weights)
    except UndefinedMetricError:
        return float("nan")


def _reason(error: Exception) -> str:
    """Return the first sentence of scikit-learn's message."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return text[:200] or type(error).__name__


def _function(name: str) -> Function:
    """Return scikit-learn's function for a metric."""
    from sklearn import metrics

    if (k := top_k(name)) is not None:
        return lambda rows, weights: _top_k(rows, weights, k)
    if (parts := f_beta(name)) is not None and name not in ("f1_samples",):
        return _by_average(metrics.fbeta_score, parts[1], beta=parts[0])
    measure, _, average = name.rpartition("_")
    averaged = {
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "jaccard": metrics.jaccard_score,
        "f1": metrics.f1_score,
    }
    if measure in averaged:
        return _by_average(averaged[measure], average)
    if name.startswith("roc_auc"):
        return lambda rows, weights: _roc_auc(rows, weights, name.removeprefix("roc_auc").lstrip("_"))
    if name.startswith("average_precision"):
        return lambda rows, weights: _average_precision(rows, weights, name.removeprefix("average_precision_"))
    return _FUNCTIONS[name]


def _by_average(function: Any, average: str, **options: Any) -> Function:
    return lambda rows, weights: function(
        rows.labels, rows.predicted, average=average, sample_weight=weights, zero_division=0, **options
    )


def _of_labels(name: str, **options: Any) -> Function:
    """Return a function of scikit-learn that reads labels and predicted labels or values."""

    def function(rows: ScoredRows, weights: Weights) -> float:
        from sklearn import metrics

        extra = {} if name in _UNWEIGHTED else {"sample_weight": weights}
        value: float = getattr(metrics, name)(rows.labels, rows.predicted, **extra, **options)
        return value

    return function


def _of_scores(name: str) -> Function:
    """Return a function of scikit-learn that reads label sets and probabilities."""

    def function(rows: ScoredRows, weights: Weights) -> float:
        from sklearn import metrics

        value: float = getattr(metrics, name)(rows.labels, rows.scores, sample_weight=weights)
        return value

    return function


def _of_variance(name: str) -> Function:
    """Return a metric that divides by the spread of the labels; if they are equal, scikit-learn would return 0 or 1."""
    options = {"force_finite": False} if name in ("r2_score", "explained_variance_score") else {}

    def function(rows: ScoredRows, weights: Weights) -> float:
        if np.ptp(rows.labels) == 0:
            raise UndefinedMetricError("all labels of the rows are equal")
        return _of_labels(name, **options)(rows, weights)

    return function


def _log_loss(rows: ScoredRows, weights: Weights) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(rows.labels, rows.scores, sample_weight=weights, labels=np.arange(len(rows.label_names))))


def _brier(rows: ScoredRows, weights: Weights) -> float:
    """Return the Brier score: of the second label if there are two, as in scikit-learn, else summed over the labels."""
    squared = ((rows.scores - rows.indicators) ** 2).sum(1)
    return float(np.average(squared / (2 if len(rows.label_names) == 2 else 1), weights=weights))


def _top_k(rows: ScoredRows, weights: Weights, k: int) -> float:
    from sklearn.metrics import top_k_accuracy_score

    classes = len(rows.label_names)
    if k >= classes:
        raise UndefinedMetricError(f"with {classes} labels it is 1 for every model; choose a number below {classes}")
    if classes == 2:  # k is 1; scikit-learn reads the probability of the second class
        return float(np.average(rows.scores.argmax(1) == rows.labels, weights=weights))
    labels = np.arange(classes)
    return float(top_k_accuracy_score(rows.labels, rows.scores, k=k, sample_weight=weights, labels=labels))


def _roc_auc(rows: ScoredRows, weights: Weights, variant: str) -> float:
    """Return the area under the ROC curve; `variant`: "", ovr, ovo, micro, weighted, ovr_weighted or ovo_weighted."""
    from sklearn.metrics import roc_auc_score

    if rows.labels.ndim == 2:
        return float(roc_auc_score(rows.labels, rows.scores, average=variant or "macro", sample_weight=weights))
    if len(rows.label_names) == 2:
        return float(roc_auc_score(rows.labels, rows.scores[:, 1], sample_weight=weights))
    _check_occur(rows)
    pairs, _, average = (variant or "ovr").partition("_")
    return float(
        roc_auc_score(
            rows.labels,
            rows.scores,
            multi_class=pairs,
            average=average or "macro",
            labels=np.arange(len(rows.label_names)),
            sample_weight=weights,
        )
    )


def _average_precision(rows: ScoredRows, weights: Weights, average: str) -> float:
    """Return the average precision: of the second label if there are two, else the mean over the labels."""
    from sklearn.metrics import average_precision_score

    average = "macro" if average.startswith("average_precision") else average
    if average in ("macro", "weighted"):
        _check_occur(rows)
    if rows.labels.ndim == 1 and len(rows.label_names) == 2:
        return float(average_precision_score(rows.labels, rows.scores[:, 1], sample_weight=weights))
    return float(average_precision_score(rows.indicators, rows.scores, average=average, sample_weight=weights))


def _check_occur(rows: ScoredRows) -> None:
    """Raise UndefinedMetricError if a label has no row."""
    missing = np.flatnonzero(rows.indicators.sum(0) == 0)
    if len(missing):
        others = f" and {len(missing) - 1} other labels" if len(missing) > 1 else ""
        raise UndefinedMetricError(f"no row has the label '{rows.label_names[missing[0]]}'{others}")


_FUNCTIONS: dict[str, Function] = {
    "balanced_accuracy": _of_labels("balanced_accuracy_score"),
    "cohen_kappa": _of_labels("cohen_kappa_score"),
    "hamming_loss": _of_labels("hamming_loss"),
    "log_loss": _log_loss,
    "brier_score": _brier,
    "label_ranking_average_precision": _of_scores("label_ranking_average_precision_score"),
    "label_ranking_loss": _of_scores("label_ranking_loss"),
    "coverage_error": _of_scores("coverage_error"),
    "r2": _of_variance("r2_score"),
    "explained_variance": _of_variance("explained_variance_score"),
    "d2_absolute_error_score": _of_variance("d2_absolute_error_score"),
    **{
        name: _of_labels(name)
        for name in (
            *("root_mean_squared_error", "median_absolute_error", "max_error", "mean_absolute_percentage_error"),
            *("mean_squared_log_error", "root_mean_squared_log_error", "mean_poisson_deviance", "mean_gamma_deviance"),
        )
    },
}
