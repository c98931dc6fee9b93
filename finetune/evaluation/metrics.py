"""The values of metrics; those of the toolkit are subclasses of `evaluate.Metric`.

They work offline, while `evaluate.load("accuracy")` would download a script. The formulas are in metric_formulas.py.

    N rows, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.loaded_metric import loaded_values
from finetune.evaluation.metric_formulas import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    confusion_matrix,
    counts_of_confusion,
    counts_of_sets,
)
from finetune.evaluation.scored_rows import ScoredRows, UndefinedMetricError
from finetune.evaluation.sklearn_metrics import compute
from finetune.recipe.loaded_metrics import value_name
from finetune.recipe.named_metrics import find_metric, is_toolkit_metric

Array = NDArray[Any]


class _OfflineMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate.Metric` that needs no network. Subclasses define the features and the computation."""

    features: datasets.Features
    description: str

    def __init__(self, num_classes: int = 0) -> None:
        self.num_classes = num_classes
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions, references",
            features=self.features,
        )


class ClassificationMetrics(_OfflineMetric):
    """All metrics of predicted class ids (N,)."""

    description = "Metrics of single-label classification."
    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        counts = counts_of_confusion(
            confusion_matrix(np.asarray(predictions), np.asarray(references), self.num_classes)
        )
        return {name: float(metric(counts)) for name, metric in SINGLE_LABEL.items()}


class MultiLabelMetrics(_OfflineMetric):
    """All metrics of predicted 0/1 label sets (N, C)."""

    description = "Metrics of multi-label classification."
    features = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("int64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
    )

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        counts = counts_of_sets(np.asarray(predictions), np.asarray(references))
        return {name: float(metric(counts)) for name, metric in MULTI_LABEL.items()}


class RegressionMetrics(_OfflineMetric):
    """All metrics of predicted values (N,)."""

    description = "Metrics of regression."
    features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})

    def _compute(self, predictions: Array, references: Array) -> dict[str, float]:
        predicted, actual = np.asarray(predictions), np.asarray(references)
        return {name: metric(predicted, actual) for name, metric in REGRESSION.items()}


OFFLINE_METRICS: dict[str, type[_OfflineMetric]] = {
    "single_label_classification": ClassificationMetrics,
    "multi_label_classification": MultiLabelMetrics,
    "regression": RegressionMetrics,
}


def metric_values(names: Sequence[str], rows: ScoredRows) -> dict[str, float]:
    """Return metrics by their names in results; NaN where a metric is undefined.

    Args:
        names: as a recipe names them: metrics of the toolkit or of scikit-learn, or the path of a metric.
    """
    own: dict[str, float] = {}
    if any(is_toolkit_metric(name, rows.problem_type) for name in names):
        own = compute_metrics(rows.predicted, rows.labels, rows.problem_type, len(rows.label_names))
    values: dict[str, float] = {}
    for name in names:
        try:
            if name in own:
                values[name] = own[name]
            elif find_metric(name, rows.problem_type) is not None:
                values[name] = compute(name, rows)
            else:
                values |= loaded_values(name, rows)
        except UndefinedMetricError:
            values[value_name(name)] = float("nan")
    return values


def compute_metrics(predictions: Array, references: Array, problem_type: str, num_classes: int) -> dict[str, float]:
    """Return all metrics of the toolkit for a problem type; an undefined value is NaN.

    Args:
        predictions: class ids (N,), 0/1 label sets (N, C) or values (N,), depending on the problem type.
        references: the labels in the same form.
    """
    metric = OFFLINE_METRICS[problem_type](num_classes)
    values: dict[str, float] = metric.compute(predictions=predictions, references=references)
    return values
