"""The scores of a split: metrics with confidence intervals, the per-class table, the confusion matrix, warnings."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.evaluation.baseline import compare_with_constant
from finetune.evaluation.bootstrap import classification_intervals, interval_note, regression_intervals
from finetune.evaluation.metric_formulas import confusion_matrix
from finetune.evaluation.prediction import Predictions
from finetune.runs.results import ClassScores, SplitScores


def score(
    predictions: Predictions,
    label_names: Sequence[str],
    metrics: Sequence[str],
    *,
    samples: int,
    seed: int,
    best_metric: str = "accuracy",
) -> SplitScores:
    """Return the metrics with confidence intervals, the per-class table, the confusion matrix and warnings.

    Args:
        metrics: names of the metrics to return.
        samples: number of bootstrap resamples.
        best_metric: the metric that selected the model; it is also compared with that of a constant prediction.
    """
    predicted = predictions.predicted_labels()
    names = list(label_names)
    per_class: list[ClassScores] = []
    if predictions.problem_type == "regression":
        values = regression_intervals(predicted, predictions.labels, samples=samples, seed=seed)
    else:
        values, per_class = classification_intervals(predicted, predictions.labels, names, samples=samples, seed=seed)
    confusion = None
    if predictions.problem_type == "single_label_classification":
        confusion = confusion_matrix(predicted, predictions.labels, len(names)).tolist()
    comparison = compare_with_constant(predicted, predictions.labels, names if per_class else [], values, best_metric)
    return SplitScores(
        rows=len(predictions.labels),
        loss=predictions.loss(),
        metrics={name: values[name] for name in metrics},
        per_class=per_class,
        confusion=confusion,
        interval_note=interval_note(len(predictions.labels)),
        warnings=comparison.warnings,
        above_constant=comparison.above_constant,
    )
