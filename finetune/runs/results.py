"""The results of data preparation, training and scoring, as stored in the JSON files of a run.

C classes
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_UNKNOWN_SHARE = 0.1  # of the tokens; above it a split gets a warning
MAX_TRUNCATED_SHARE = 0.05  # of the rows; above it a split gets a warning

_ROUNDING = 1e-12  # a smaller number is 0, up to rounding


def unknown_message(share: float, split: str) -> str:
    """Return the warning about tokens that the tokenizer does not know."""
    unknown = f"{share:.0%} of the {split} tokens are unknown to the tokenizer, so the model cannot distinguish them"
    return f"{unknown}: choose a model for the language and script of the texts"


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a value such as "0.884", "2.1e-06" where it would be 0 with so many decimals, or "undefined" for None."""
    if value is None:
        return "undefined"
    return f"{value:.2g}" if _ROUNDING < abs(value) < 0.5 * 10**-digits else f"{value:.{digits}f}"


def format_significant(value: float, digits: int = 3) -> str:
    """Return a value rounded to `digits` significant digits, such as "0.0123" or "1,230,000"."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


@dataclass(frozen=True)
class MetricValue:
    """A metric and its 95 % interval.

    The value is None if the metric is undefined. The bounds are None if an interval would be misleading. `note` says
    why there is no value, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def interval(self) -> str:
        """Return "[0.862, 0.905]", or "" if there is no interval."""
        if self.low is None or self.high is None:
            return ""
        return f"[{format_number(self.low)}, {format_number(self.high)}]"


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class.

    Attributes:
        support: number of rows with its label.
        average_precision: of its probabilities; None in runs of earlier versions.
    """

    label: str
    precision: MetricValue
    recall: MetricValue
    f1: MetricValue
    support: int
    average_precision: MetricValue | None = None


@dataclass(frozen=True)
class SetScores:
    """What prediction sets with a promised coverage do on rows whose labels are known.

    Attributes:
        coverage: the promise.
        covered: share of the rows whose set contains the label, or whose interval contains the value.
        size: mean number of labels in a set; in regression the width of the interval.
        answered: share of the rows whose set has exactly one label; None in regression.
        answered_correctly: share of the answered rows whose one label is right; None in regression.
        empty: share of the rows whose set is empty; None in regression.
    """

    coverage: float
    covered: MetricValue
    size: float
    answered: float | None = None
    answered_correctly: MetricValue | None = None
    empty: float | None = None


@dataclass(frozen=True)
class ConfidenceScores:
    """How far probabilities are from observed frequencies, and what prediction sets do.

    Attributes:
        calibration_error: expected calibration error, see evaluation/calibration.py; None in regression.
        brier: Brier score; None in regression.
        risk_coverage_area: area under the risk-coverage curve; None with several labels per row and in regression.
        sets: one entry per coverage that could be promised.
        note: how the figures were computed if the rows also fitted the temperature and the sets, or "".
    """

    calibration_error: MetricValue | None = None
    brier: MetricValue | None = None
    risk_coverage_area: MetricValue | None = None
    sets: list[SetScores] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class SplitScores:
    """The scores of the classifier on one split.

    Attributes:
        confusion: number of rows with label i that were predicted as j, (C, C).
        warnings: reasons to doubt that the classifier has learned anything, see evaluation/baseline.py.
        above_constant: whether the classifier is clearly better than a constant prediction; None if the rows cannot
            show it, or if the scores were stored before this was.
        threshold_gain: F1 of the labels with a threshold, minus F1 without thresholds, on rows that did not tune them;
            None without thresholds.
        confidence: how reliable the probabilities are; None for training rows and in runs of earlier versions.
    """

    rows: int
    loss: float
    metrics: dict[str, MetricValue]
    per_class: list[ClassScores] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    interval_note: str = ""
    warnings: list[str] = field(default_factory=list)
    above_constant: bool | None = None
    threshold_gain: MetricValue | None = None
    confidence: ConfidenceScores | None = None

    def metric_notes(self) -> list[str]:
        """Return why metrics are undefined or have no interval; a reason of several metrics is given once."""
        names: dict[str, list[str]] = {}
        for name, value in self.metrics.items():
            if value.note and value.note != self.interval_note:
                names.setdefault(value.note, []).append(name.replace("_", " "))
        return [f"{', '.join(of_note)}: {note}" for note, of_note in names.items()]

    def threshold_gain_text(self) -> str:
        """Return what the thresholds change on these rows, or "" if it was not measured."""
        gain = self.threshold_gain
        if gain is None or gain.value is None:
            return ""
        bounds = gain.interval() or (f"({gain.note})" if gain.note else "")
        return f"the thresholds change the F1 of their labels by {gain.value:+.3f} {bounds}".rstrip() + "."


@dataclass(frozen=True)
class SplitSummary:
    """The size, labels and token lengths of one split.

    Attributes:
        truncated_share: share of the rows that were truncated to the maximum length.
        rows_also_in_train: rows whose text is also a training row.
        unknown_share: share of the tokens that the tokenizer does not know.
        label_name_rows: rows that are the names of the labels, which were added to the training rows.
        true_lengths: quantiles of the tokens per row before truncation, as "50", "90", "95", "99" and "100" percent;
            empty in runs of earlier versions.
        truncation_hint: what to do about truncated rows; "" if there are none.
    """

    rows: int
    label_counts: dict[str, int]
    tokens_median: float
    tokens_longest: int
    truncated_share: float
    rows_also_in_train: int = 0
    unlabeled_rows_dropped: int = 0
    unknown_share: float = 0.0
    label_name_rows: int = 0
    true_lengths: dict[str, int] = field(default_factory=dict)
    truncation_hint: str = ""

    def notes(self, split: str) -> list[str]:
        """Return notes that affect the interpretation of the scores of `split`."""
        added = (
            f"The names of the {self.label_name_rows} labels are also training rows." if self.label_name_rows else ""
        )
        notes = (
            added, self.dropped_note(split), self.overlap_note(split), self.truncation_note(split),
            self.unknown_note(split),
        )  # fmt: skip
        return [note for note in notes if note]

    def longest(self) -> int:
        """Return the largest number of tokens of a row before truncation; after it in runs of earlier versions."""
        return self.true_lengths.get("100", self.tokens_longest)

    def truncation_note(self, split: str) -> str:
        """Return a warning if many rows were truncated, or ""."""
        if self.truncated_share <= MAX_TRUNCATED_SHARE or not self.truncation_hint:
            return ""
        longer = f", and 1 % has more than {self.true_lengths['99']} tokens" if "99" in self.true_lengths else ""
        return f"{self.truncated_share:.0%} of the {split} rows were truncated{longer}: {self.truncation_hint}."

    def unknown_note(self, split: str) -> str:
        """Return a warning if many tokens are unknown to the tokenizer, or ""."""
        return f"{unknown_message(self.unknown_share, split)}." if self.unknown_share > MAX_UNKNOWN_SHARE else ""

    def dropped_note(self, split: str) -> str:
        """Return how many rows without a label were dropped from `split`, or "" if there were none."""
        dropped = self.unlabeled_rows_dropped
        rows = "1 row without a label was" if dropped == 1 else f"{dropped} rows without a label were"
        return f"{rows} dropped from the {split} split." if dropped else ""

    def overlap_note(self, split: str) -> str:
        """Return how rows that are also training rows affect the scores of `split`, or "" if there are none."""
        shared = self.rows_also_in_train
        if not shared:
            return ""
        if shared == self.rows:
            return (
                f"All {self.rows} {split} rows are also training rows: their scores measure memorization, not "
                "generalization."
            )
        return f"{shared} of {self.rows} {split} rows are also training rows, so the {split} scores are optimistic."


@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of training. Its times cover the training steps only, without evaluation and saving."""

    train_seconds: float
    train_samples_per_second: float
    train_tokens_per_second: float
    padding_share: float
    eval_samples_per_second: float
    peak_memory_mb: float


@dataclass(frozen=True)
class TrainingResult:
    """The result of training: steps, best evaluation, why it ended, parameters, speed, notes on the model.

    Attributes:
        stopped: why training ended, such as "all epochs done".
        flops_per_row: floating-point operations of a forward pass without padding, as the mean over the training rows;
            None in runs of earlier versions.
        seconds_per_epoch: duration of the optimizer steps of an epoch; None in runs of earlier versions.
        warnings: reasons to train longer or faster, see evaluation/learning_curve.py.
    """

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
    warnings: list[str] = field(default_factory=list)
    flops_per_row: int | None = None
    seconds_per_epoch: float | None = None

    def best_text(self) -> str:
        """Return "best accuracy 0.9000 at step 30", or "" if there was no evaluation."""
        if self.best_step is None:
            return ""
        if self.best_value is None:
            return f"{self.best_metric} undefined in every evaluation, lowest loss at step {self.best_step}"
        return f"best {self.best_metric} {self.best_value:.4f} at step {self.best_step}"


@dataclass(frozen=True)
class ModelCost:
    """The cost of a classifier: parameters, size of its weight files, and prediction speed."""

    parameters: int
    model_bytes: int
    rows_per_second: float


@dataclass(frozen=True)
class Environment:
    """The part of `environment.json` that the report shows."""

    started: str
    finetune: str
    packages: dict[str, str]
    python: str
    device: str
    processes: int
    mixed_precision: str
    seed: int
    commit: str | None = None


@dataclass(frozen=True)
class HeadFailure:
    """Why the head analysis of a finished run failed."""

    reason: str
