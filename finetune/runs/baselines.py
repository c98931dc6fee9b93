"""How the classifier compares with cheap baselines on the same rows, as stored in `baselines.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from finetune.runs.results import MetricValue


@dataclass(frozen=True)
class BaselineInfo:
    """What a baseline is, such as "TF-IDF + logistic regression", and on how many training rows it was fitted."""

    description: str
    training_rows: int


@dataclass(frozen=True)
class BaselineScores:
    """The scores of a baseline on one split.

    Attributes:
        metrics: None where a metric is undefined.
        differences: by metric, the classifier's score minus that of the baseline, with a 95 % interval from paired
            resamples of the rows.
    """

    metrics: dict[str, float | None]
    differences: dict[str, MetricValue] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitComparison:
    """The classifier and every baseline on one split.

    Attributes:
        classifier: the metrics of the classifier.
        baselines: the scores of each baseline, by its name.
        warning: which baseline the classifier does not clearly beat, and what to change; "" if it beats all.
    """

    rows: int
    classifier: dict[str, float | None]
    baselines: dict[str, BaselineScores]
    warning: str = ""


@dataclass(frozen=True)
class BaselineComparison:
    """The comparison of a classifier with its baselines.

    Attributes:
        metric: the metric by which they are compared.
        fitted: what each baseline is, by its name in the recipe.
        skipped: why other baselines of the recipe are missing.
        seconds: the time that fitting and scoring the baselines took.
        splits: the comparison on each held-out split.
        note: how the decisions of the classifier differ from those of the baselines, or "".
    """

    metric: str
    fitted: dict[str, BaselineInfo]
    skipped: dict[str, str]
    seconds: float
    splits: dict[str, SplitComparison]
    note: str = ""

    def warnings(self) -> list[str]:
        """Return the warning of each split that has one, with the name of the split."""
        return [f"{split}: {result.warning}." for split, result in self.splits.items() if result.warning]

    def with_classifier(self, metrics: Mapping[str, Mapping[str, float | None]]) -> BaselineComparison | None:
        """Return the baselines beside another classifier, without differences; None if nothing can be compared.

        Args:
            metrics: of the other classifier, by split.
        """
        splits = {
            split: SplitComparison(
                result.rows,
                {name: metrics[split].get(name) for name in result.classifier},
                {name: BaselineScores(scores.metrics) for name, scores in result.baselines.items()},
            )
            for split, result in self.splits.items()
            if self.metric in metrics.get(split, {})
        }
        return replace(self, splits=splits) if splits else None
