"""Compare a classifier with fitted baselines on the same rows, and warn if it does not clearly beat them.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.evaluation.baseline_models import Baseline
from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.metrics import metric_values
from finetune.evaluation.named_intervals import MAX_SAMPLES, paired_difference
from finetune.evaluation.paired_differences import paired_differences
from finetune.evaluation.prediction import Predictions
from finetune.evaluation.scored_rows import ScoredRows
from finetune.recipe.named_metrics import find_metric, is_toolkit_metric, lower_is_better
from finetune.recipe.names import METRICS
from finetune.runs.baselines import BaselineScores, SplitComparison
from finetune.runs.results import MetricValue, format_number


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared, and how often rows are resampled.

    Attributes:
        metrics: the metrics to report.
        metric: the metric that decides which is better.
        num_classes: number of classes C.
        samples: number of bootstrap resamples, for metrics of scikit-learn.
    """

    metrics: Sequence[str]
    metric: str
    num_classes: int
    samples: int
    seed: int


def compared_metric(best_metric: str, metrics: Sequence[str], problem_type: str) -> str:
    """Return the metric by which a classifier is compared with baselines.

    It is the best metric, or the first one that needs no probabilities: a baseline has only labels or values.
    """
    candidates = (best_metric, *metrics, *METRICS[problem_type])
    return next(name for name in candidates if _is_comparable(name, problem_type))


def _is_comparable(name: str, problem_type: str) -> bool:
    metric = find_metric(name, problem_type)
    return metric is not None and not metric.needs_probabilities


def compare_with_baselines(
    predictions: Predictions, split: str, baselines: Mapping[str, Baseline], settings: ComparisonSettings
) -> SplitComparison:
    """Return the scores of the baselines on a split, and the classifier's score minus that of each.

    Args:
        predictions: those of the classifier.
        baselines: by name, with their predictions for `split`.
    """
    problem_type, labels = predictions.problem_type, predictions.labels
    names = [name for name in dict.fromkeys((*settings.metrics, settings.metric)) if _is_comparable(name, problem_type)]

    def rows_of(predicted: np.ndarray) -> ScoredRows:
        return ScoredRows(labels, predicted, None, predictions.rules.label_names, problem_type)

    def scores_of(predicted: np.ndarray) -> dict[str, float | None]:
        values = metric_values(names, rows_of(predicted))
        return {name: none_if_undefined(value) for name, value in values.items()}

    classifier = predictions.predicted_labels()
    results = {}
    for name, baseline in baselines.items():
        predicted = baseline.predictions[split]
        differences = _differences((rows_of(predicted), rows_of(classifier)), settings)
        results[name] = BaselineScores(scores_of(predicted), differences)
    comparison = SplitComparison(len(labels), scores_of(classifier), results)
    descriptions = {name: baseline.description for name, baseline in baselines.items()}
    return SplitComparison(**vars(comparison) | {"warning": _warning(comparison, settings.metric, descriptions)})


def _differences(pair: tuple[ScoredRows, ScoredRows], settings: ComparisonSettings) -> dict[str, MetricValue]:
    """Return second minus first in the compared metric, and in accuracy if there is one label per row."""
    problem_type, labels = pair[0].problem_type, pair[0].labels
    paired = list(dict.fromkeys([settings.metric, *(["accuracy"] if "accuracy" in METRICS[problem_type] else [])]))
    differences = paired_differences(
        (pair[0].predicted, pair[1].predicted),
        labels.astype(float) if problem_type == "regression" else labels,
        [name for name in paired if is_toolkit_metric(name, problem_type)],
        num_classes=settings.num_classes,
    )
    samples = min(settings.samples, MAX_SAMPLES)
    return {
        name: differences[name]
        if name in differences
        else paired_difference(pair, name, samples=samples, seed=settings.seed)
        for name in paired
    }


def _warning(comparison: SplitComparison, metric: str, descriptions: Mapping[str, str]) -> str:
    """Return which baseline the classifier does not clearly beat, by how much, and what to change; "" if it beats all.

    Of several such baselines, the one with the best score is named.
    """
    sign = -1 if lower_is_better(metric) else 1
    score = comparison.classifier[metric]
    unbeaten = {
        name: result.metrics[metric]
        for name, result in comparison.baselines.items()
        if not _is_above(result.differences[metric], sign)
    }
    known = {name: sign * value for name, value in unbeaten.items() if value is not None}
    if not known or (score == 1 and sign == 1) or (score == 0 and sign == -1):  # a perfect score cannot be beaten
        return ""
    best = max(known, key=lambda name: known[name])
    difference = comparison.baselines[best].differences[metric]
    is_below = _is_below(difference, sign)
    better, worse = ("below", "above") if sign == -1 else ("above", "below")
    relation = f"clearly {worse}" if is_below else f"not clearly {better}"
    advice = "train for more epochs (training.num_train_epochs), on more rows, or with another encoder"
    return (
        f"{metric} {format_number(score)} is {relation} {format_number(unbeaten[best])}, the score of a baseline "
        f"({descriptions[best]}){_difference_text(difference)}. "
        + (f"Use the baseline, or {advice}" if is_below else f"{advice[0].upper()}{advice[1:]}, or use the baseline")
    )


def is_below_a_baseline(comparison: SplitComparison, metric: str) -> bool:
    """Return whether a baseline is clearly better than the classifier, so that the rows have something to learn."""
    sign = -1 if lower_is_better(metric) else 1
    return any(_is_below(result.differences[metric], sign) for result in comparison.baselines.values())


def _is_below(difference: MetricValue, sign: int) -> bool:
    """Return whether the classifier is clearly worse, by the whole interval."""
    return difference.low is not None and difference.high is not None and _is_above(_negative(difference), sign)


def _is_above(difference: MetricValue, sign: int) -> bool:
    """Return whether the classifier is clearly better: by the whole interval, or by the value if there is none.

    An undefined difference cannot be compared, and counts as better.
    """
    if difference.value is None:
        return True
    bounds = [difference.value if bound is None else bound for bound in (difference.low, difference.high)]
    return min(sign * bound for bound in bounds) > 0


def _negative(difference: MetricValue) -> MetricValue:
    """Return the same difference, of the baseline minus the classifier."""
    value, high, low = (
        None if number is None else -number for number in (difference.value, difference.low, difference.high)
    )
    return MetricValue(value, low, high, difference.note)


def _difference_text(difference: MetricValue) -> str:
    """Return " (difference +0.100, 95 % interval [-0.020, 0.200])", or "" without an interval."""
    if difference.value is None or not difference.interval():
        return ""
    return f" (difference {difference.value:+.3f}, 95 % interval {difference.interval()})"
