"""What the stages hand on, and the run folder in which it lies as JSON. Imports no torch.

L layers, H heads, C classes
"""

from __future__ import annotations

from dataclasses import dataclass, field

HIGH_UNKNOWN_SHARE = 0.1


def format_number(value: float | None, digits: int = 3) -> str:
    """Return "0.884" with so many decimals, or "undefined" for None."""
    return "undefined" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class MetricValue:
    """A metric and its 95 % bootstrap interval.

    The value is None where the metric is undefined; the bounds are None where an interval would mislead.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def interval(self) -> str:
        """Return "[0.862, 0.905]", or "" where there is no interval."""
        return "" if self.low is None or self.high is None else f"[{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class ClassScores:
    """One row of the per-class table; `support` counts the rows that carry the label."""

    label: str
    precision: MetricValue
    recall: MetricValue
    f1: MetricValue
    support: int


@dataclass(frozen=True)
class SplitScores:
    """How the classifier did on one split.

    Attributes:
        confusion: rows of label i predicted as j, (C, C).
        warnings: what speaks against the classifier having learned anything, see baseline.py.
    """

    rows: int
    loss: float
    metrics: dict[str, MetricValue]
    per_class: list[ClassScores] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    interval_note: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds: rows, rows by label, lengths, shares cut and unknown, rows also in train or left out."""

    rows: int
    label_counts: dict[str, int]
    tokens_median: float
    tokens_longest: int
    truncated_share: float
    rows_also_in_train: int = 0
    unlabeled_rows_dropped: int = 0
    unknown_share: float = 0.0  # of the tokens

    def notes(self, split: str) -> list[str]:
        """Return what to know before the scores of `split` are believed."""
        notes = (self.dropped_note(split), self.memory_note(split), self.unknown_note(split))
        return [note for note in notes if note]

    def unknown_note(self, split: str) -> str:
        """Return a warning if the tokenizer does not know much of the text, or ""."""
        if self.unknown_share <= HIGH_UNKNOWN_SHARE:
            return ""
        return (
            f"{self.unknown_share:.0%} of the {split} tokens are unknown to the tokenizer, so the model cannot tell "
            "them apart. Check that the checkpoint fits these texts; a new model knows only the words of its training "
            "rows."
        )

    def dropped_note(self, split: str) -> str:
        """Return how many rows without a label were left out of `split`, or "" when there were none."""
        dropped = self.unlabeled_rows_dropped
        rows = "1 row without a label is" if dropped == 1 else f"{dropped} rows without a label are"
        return f"{rows} left out of the {split} rows." if dropped else ""

    def memory_note(self, split: str) -> str:
        """Return what rows shared with training mean for the scores of `split`, or "" when there are none."""
        shared = self.rows_also_in_train
        if not shared:
            return ""
        if shared == self.rows:
            return (
                f"All {self.rows} {split} rows are training rows too: scores on them show memory, not generalisation."
            )
        return (
            f"{shared} of {self.rows} {split} rows are training rows too, so scores on {split} are a little too good."
        )


@dataclass(frozen=True)
class TrainingSpeed:
    """How fast training went. Seconds count training steps alone, without evaluation and saving."""

    train_seconds: float
    train_samples_per_second: float
    train_tokens_per_second: float
    padding_share: float
    eval_samples_per_second: float
    peak_memory_mb: float


@dataclass(frozen=True)
class TrainingResult:
    """How training ended: steps, the best evaluation, why it stopped, its speed; notes on how the model was built."""

    steps: int
    best_step: int | None
    best_metric: str
    best_value: float | None
    stopped: str
    trainable_parameters: int
    total_parameters: int
    trained_dtype: str
    speed: TrainingSpeed
    notes: list[str] = field(default_factory=list)

    def best_text(self) -> str:
        """Return "best accuracy 0.9000 at step 30", or "" where nothing was evaluated."""
        if self.best_step is None:
            return ""
        if self.best_value is None:
            return f"{self.best_metric} undefined in every evaluation, lowest loss at step {self.best_step}"
        return f"best {self.best_metric} {self.best_value:.4f} at step {self.best_step}"


@dataclass(frozen=True)
class ModelCost:
    """What a classifier costs to keep and to run: parameters, bytes of its weight files, rows per second."""

    parameters: int
    model_bytes: int
    rows_per_second: float
