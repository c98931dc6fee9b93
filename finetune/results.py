"""What the stages hand on, and the run folder in which it lies as JSON. Imports no torch.

L layers, H heads, C classes
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune.errors import DataError
from finetune.files import free_aside, writing

T = TypeVar("T")

HIGH_UNKNOWN_SHARE = 0.1


def number(value: float | None, digits: int = 3) -> str:
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
class Speed:
    """How fast training went. Seconds count training steps alone, without evaluation and saving."""

    train_seconds: float
    train_samples_per_second: float
    train_tokens_per_second: float
    padding_share: float
    eval_samples_per_second: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Training:
    """How training ended: steps, the best evaluation, why it stopped, its speed; notes on how the model was built."""

    steps: int
    best_step: int | None
    best_metric: str
    best_value: float | None
    stopped: str
    trainable_parameters: int
    total_parameters: int
    trained_dtype: str
    speed: Speed
    notes: list[str] = field(default_factory=list)

    def best_text(self) -> str:
        """Return "best accuracy 0.9000 at step 30", or "" where nothing was evaluated."""
        if self.best_step is None:
            return ""
        if self.best_value is None:
            return f"{self.best_metric} undefined in every evaluation, lowest loss at step {self.best_step}"
        return f"best {self.best_metric} {self.best_value:.4f} at step {self.best_step}"


@dataclass(frozen=True)
class Footprint:
    """What a classifier costs to keep and to run: parameters, bytes of its weight files, rows per second."""

    parameters: int
    model_bytes: int
    rows_per_second: float


@dataclass(frozen=True)
class RunFolder:
    """The names in a run folder; nobody else spells them."""

    path: Path

    recipe = property(lambda self: self.path / "recipe.yaml")
    environment = property(lambda self: self.path / "environment.json")
    data = property(lambda self: self.path / "data.json")
    history = property(lambda self: self.path / "history.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    trackers = property(lambda self: self.path / "trackers")
    model = property(lambda self: self.path / "model")
    merged = property(lambda self: self.path / "merged")
    pruned = property(lambda self: self.path / "pruned")
    ranks = property(lambda self: self.path / "ranks.json")  # of earlier versions, with rank_pattern: by_importance
    training = property(lambda self: self.path / "training.json")
    scores = property(lambda self: self.path / "scores.json")
    predictions = property(lambda self: self.path / "predictions.parquet")
    heads = property(lambda self: self.path / "heads.json")
    heads_failure = property(lambda self: self.path / "heads_failure.json")
    report = property(lambda self: self.path / "report.html")
    card = property(lambda self: self.path / "README.md")

    def written(self) -> list[Path]:
        """Return every place a run writes to."""
        return [getattr(self, name) for name, value in vars(type(self)).items() if isinstance(value, property)]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: aside first, then renamed.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with writing(path):
        aside = free_aside(path)
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a result (a dataclass or plain values) as JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, default=asdict, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for a file of a run that cannot be used, with the command that writes it again."""
    repair = _REPAIRS.get(path.name, "finish the run (checkpoint.resume_from_checkpoint=auto) or repeat it")
    return DataError(f"{path} is damaged or of another version ({reason}); {repair}")


def read_json(path: Path, kind: type[T]) -> T:
    """Return the result of type `kind` that lies in `path`.

    Raises:
        DataError: the file is missing, or does not hold such a result.
    """
    content = read_bytes(path)
    try:
        json.loads(content, parse_constant=_refuse_constant)  # pydantic takes NaN for a number, and no depth for deep
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{where}: {first['msg']}" if where else first["msg"]) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        repair = _REPAIRS.get(path.name, "finish or repeat the run")
        raise DataError(f"no {path.name} in {path.parent}; a finished run has one: {repair}") from error
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one JSON line.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


_AGAIN = "remove the file, and `finetune {} RUN` writes it again"
_REPAIRS = {
    "recipe.yaml": "copy the recipe that was run there",
    **dict.fromkeys(("scores.json", "predictions.parquet"), _AGAIN.format("evaluate")),
    **dict.fromkeys(("heads.json", "heads_failure.json"), _AGAIN.format("heads")),
}
