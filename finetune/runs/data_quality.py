"""What is remarkable about the rows of a run: the content of `data_quality.json` and of `finetune check --data --json`.

C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WARNING, NOTE = "warning", "note"


@dataclass(frozen=True)
class RowExample:
    """A row that shows what a finding means; `row` counts from 1 in the file or data set of its split."""

    split: str
    row: int
    text: str
    label: str = ""


@dataclass(frozen=True)
class Finding:
    """Something about the rows that can harm the model or its scores.

    Attributes:
        kind: a name that stays the same between versions, see the guide on data quality.
        level: "warning", or "note" for what is usually harmless.
        split: the split that it is about; "" if it is about several.
        rows: number of rows that it is about; for findings about labels, of labels.
        message: what it is, why it matters and what to do.
        examples: groups of rows that belong together, such as two rows with the same text.
    """

    kind: str
    level: str
    split: str
    rows: int
    message: str
    examples: list[list[RowExample]] = field(default_factory=list)


@dataclass(frozen=True)
class TokenLengths:
    """Tokens per row before truncation, with special tokens: quantiles and a histogram.

    Attributes:
        bin_edges: of the histogram, (B + 1,); a bin contains its upper edge.
        bin_rows: rows per bin, (B,).
    """

    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    bin_edges: list[int]
    bin_rows: list[int]


@dataclass(frozen=True)
class LabelSetSizes:
    """Labels per row of a multi-label split."""

    mean: float
    largest: int
    rows_without_label: int


@dataclass(frozen=True)
class ValueRange:
    """The values of a regression split."""

    lowest: float
    mean: float
    standard_deviation: float
    highest: float


@dataclass(frozen=True)
class SplitQuality:
    """The rows, labels and tokens of one split.

    Attributes:
        label_counts: label -> rows; empty for regression.
        truncated_share: share of the rows that are truncated to the maximum length.
        unknown_share: share of the tokens that the tokenizer does not know.
    """

    rows: int
    label_counts: dict[str, int]
    tokens: TokenLengths
    truncated_share: float
    unknown_share: float
    label_set_sizes: LabelSetSizes | None = None
    values: ValueRange | None = None


@dataclass(frozen=True)
class DataQuality:
    """The findings about the rows of a recipe, and a description of each split.

    Attributes:
        version: of this format; it changes when a field gets another meaning.
        max_length: maximum number of tokens per row.
        suggested_max_length: the smallest usual length that 99 % of the training rows have at most, within the limit
            of the model.
        unchecked: sentences about what was not examined.
    """

    max_length: int
    suggested_max_length: int
    splits: dict[str, SplitQuality]
    findings: list[Finding]
    unchecked: list[str] = field(default_factory=list)
    version: int = 1

    def with_level(self, level: str) -> list[Finding]:
        """Return the findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def without_texts(self) -> DataQuality:
        """Return the same without any text of a row."""
        return replace(self, findings=[replace(finding, examples=[]) for finding in self.findings])


def list_names(names: Sequence[str], shown: int = 5) -> str:
    """Return "a, b and 3 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
