"""The results of a comparison of runs, as stored in `comparison.json`.

C classes
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.runs.head_results import TauValue
from finetune.runs.results import MetricValue


@dataclass(frozen=True)
class MetricDifference:
    """A metric of two runs (of a series, the mean over its seeds), and second minus first with its 95 % interval."""

    first: float | None
    second: float | None
    difference: MetricValue


@dataclass(frozen=True)
class ClassDifference:
    """Second minus first in recall and F1 of one class; `support` is the number of rows with its label."""

    label: str
    support: int
    recall: MetricValue
    f1: MetricValue


@dataclass(frozen=True)
class PairedTest:
    """A test of the hypothesis that two runs do not differ.

    Attributes:
        name: the test.
        subject: what it compares, such as "right and wrong rows".
        p_holm: the p-value corrected for the number of comparisons on the split (Holm 1979).
    """

    name: str
    subject: str
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class SplitDifference:
    """The difference of two runs on the rows of one split.

    Attributes:
        test: None if the difference has no variance that a test could use.
        gained, lost: rows that only the second run, or only the first, predicts correctly (of a series, more than half
            of its seeds); None in regression.
        notes: limits of the intervals.
    """

    rows: int
    metrics: dict[str, MetricDifference]
    test: PairedTest | None
    classes: list[ClassDifference] = field(default_factory=list)
    gained: int | None = None
    lost: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunSummary:
    """What a run costs, and how many heads it needs; of a series, the means over its seeds.

    Attributes:
        flops_per_row: see `TrainingResult`.
        head_method: the leading ranking of the heads; None without one.
        heads: number of heads.
        heads_needed: the smallest number of heads on the pruning curve whose score is within one point of the full
            model's; None without a curve.
    """

    name: str
    path: str
    seeds: list[int]
    trainable_parameters: float
    total_parameters: float
    train_seconds: float
    train_samples_per_second: float
    eval_samples_per_second: float
    peak_memory_mb: float
    device: str
    flops_per_row: float | None = None
    head_method: str | None = None
    heads: int | None = None
    heads_needed: float | None = None


@dataclass(frozen=True)
class PairComparison:
    """A run compared with the first one.

    Attributes:
        splits: by name, those that both were scored on with the same rows.
        skipped: why other splits are missing.
        head_agreement: Kendall's tau between the leading rankings; of series, the mean over all pairs of seeds.
        head_note: why there is no agreement, or what it is a mean of.
    """

    name: str
    splits: dict[str, SplitDifference]
    skipped: dict[str, str] = field(default_factory=dict)
    head_agreement: TauValue | None = None
    head_note: str = ""


@dataclass(frozen=True)
class RunsComparison:
    """Runs or series compared with the first one.

    Attributes:
        metric: the metric that selects the best checkpoint of the first run.
        runs: all runs, the first one first.
        pairs: each other run against the first.
        recipe: keys whose values differ, with one value per run.
        notes: on the choice of checkpoints, and on what is corrected for the number of comparisons.
    """

    problem_type: str
    metric: str
    runs: list[RunSummary]
    pairs: list[PairComparison]
    recipe: dict[str, list[str]]
    notes: list[str]

    def splits(self) -> list[str]:
        """Return the splits of all pairs, each once."""
        return list(dict.fromkeys(split for pair in self.pairs for split in pair.splits))

    def pairs_on(self, split: str) -> list[PairComparison]:
        """Return the comparisons that have this split."""
        return [pair for pair in self.pairs if split in pair.splits]


@dataclass(frozen=True)
class ChangedRow:
    """A row that changed sides between the first run and another one.

    Attributes:
        run: the other run.
        first_predicted, predicted: what the first and the other run predict; of a series what most seeds predict.
        first_right, right: the share of the seeds that are right.
        change: "gained" if only the other run is right, "lost" if only the first is.
    """

    run: str
    split: str
    row: int
    text: str
    text_1: str
    label: str
    first_predicted: str
    predicted: str
    first_right: float
    right: float
    change: str
