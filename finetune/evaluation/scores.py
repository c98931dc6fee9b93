"""The scores of a split: metrics with confidence intervals, the per-class table, the confusion matrix, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from finetune.evaluation.baseline import compare_with_constant
from finetune.evaluation.class_average_precision import class_average_precisions
from finetune.evaluation.intervals import classification_intervals, interval_note
from finetune.evaluation.loaded_intervals import loaded_metric_values
from finetune.evaluation.metric_formulas import confusion_matrix
from finetune.evaluation.named_intervals import MAX_SAMPLES, named_metric_value
from finetune.evaluation.prediction import Predictions
from finetune.evaluation.regression_intervals import regression_intervals
from finetune.evaluation.scored_rows import ScoredRows
from finetune.recipe.named_metrics import find_metric
from finetune.runs.results import ClassScores, MetricValue, SplitScores

_EQUAL = "undefined: all predictions or all labels of the rows are equal"


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
        metrics: the metrics to return, as a recipe names them.
        samples: number of bootstrap resamples.
        best_metric: the metric that selected the model; it is also compared with that of a constant prediction.
    """
    predicted = predictions.predicted_labels()
    names = list(label_names)
    per_class: list[ClassScores] = []
    if predictions.problem_type == "regression":
        values = regression_intervals(predicted, predictions.labels)
    else:
        values, per_class = classification_intervals(predicted, predictions.labels, names)
        ranked = class_average_precisions(predictions.scored_rows(), samples=samples, seed=seed)
        per_class = [replace(row, average_precision=cell) for row, cell in zip(per_class, ranked, strict=True)]
    confusion = None
    if predictions.problem_type == "single_label_classification":
        confusion = confusion_matrix(predicted, predictions.labels, len(names)).tolist()
    comparison = compare_with_constant(predicted, predictions.labels, names if per_class else [], values, best_metric)
    return SplitScores(
        rows=len(predictions.labels),
        loss=predictions.loss(),
        metrics=dict(_reported(metrics, values, predictions.scored_rows(), samples, seed)),
        per_class=per_class,
        confusion=confusion,
        interval_note=interval_note(len(predictions.labels)),
        warnings=comparison.warnings,
        above_constant=comparison.above_constant,
    )


def _reported(
    metrics: Sequence[str], own: Mapping[str, MetricValue], rows: ScoredRows, samples: int, seed: int
) -> Iterator[tuple[str, MetricValue]]:
    """Yield the metrics of a recipe by their names in results, with their intervals.

    Args:
        own: the metrics of the toolkit.
    """
    samples = min(samples, MAX_SAMPLES)
    for name in metrics:
        if name in own:
            value = own[name]
            yield name, replace(value, note=value.note or _EQUAL) if value.value is None else value
        elif find_metric(name, rows.problem_type) is not None:
            yield name, named_metric_value(name, rows, samples=samples, seed=seed)
        else:
            yield from loaded_metric_values(name, rows, samples=samples, seed=seed).items()
