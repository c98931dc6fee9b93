"""The scores of a split: metrics with confidence intervals, the per-class table, the confusion matrix, warnings."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.evaluation.baseline import baseline_warnings
from finetune.evaluation.bootstrap import classification_intervals, interval_note, regression_intervals
from finetune.evaluation.metrics import confusion_matrix
from finetune.evaluation.prediction import Predictions
from finetune.runs.results import ClassScores, SplitScores


def score(
    predictions: Predictions, label_names: Sequence[str], metrics: Sequence[str], *, samples: int, seed: int
) -> SplitScores:
    """Return the metrics with confidence intervals, the per-class table, the confusion matrix and warnings.

    Args:
        metrics: names of the metrics to return.
        samples: number of bootstrap resamples.
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
    return SplitScores(
        rows=len(predictions.labels),
        loss=predictions.loss(),
        metrics={name: values[name] for name in metrics},
        per_class=per_class,
        confusion=confusion,
        interval_note=interval_note(len(predictions.labels)),
        warnings=baseline_warnings(predicted, predictions.labels, names if per_class else [], values),
    )
