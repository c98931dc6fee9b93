"""Tables of data quality in the terminal: finetune/report/quality_terminal.py."""

from __future__ import annotations

from finetune.report.quality_terminal import print_data_quality
from finetune.runs.data_quality import (
    DataQuality,
    Finding,
    LabelSetSizes,
    RowExample,
    SplitQuality,
    TokenLengths,
    ValueRange,
)
from tests.report.test_terminal import terminal

TOKENS = TokenLengths(5, 8, 9, 10, 12, [0, 4, 8, 12], [0, 30, 1])


def printed(quality: DataQuality, width: int = 80) -> str:
    console, text = terminal(width)
    print_data_quality(console, quality)
    return text.getvalue()


def test_labels_lengths_and_findings_are_shown() -> None:
    counts = {f"label{number}": number + 1 for number in range(25)}
    split = SplitQuality(325, counts, TOKENS, 0.25, 0.5, LabelSetSizes(1.5, 3, 7))
    rows = [RowExample("train", 3, "one [red]text", "a"), RowExample("train", 9, "One [red]text\x1b")]
    findings = [Finding("b", "note", "train", 1, "a note"), Finding("a", "warning", "train", 2, "a [warning]", [rows])]
    text = printed(DataQuality(8, 12, {"train": split, "validation": split}, findings, ["Not all."]))
    lines = [line.strip() for line in text.splitlines()]
    assert "data.max_length is 8; 12 fits 99 % of the training rows, or is the model's limit." in lines
    assert "5–8  " + "█" * 24 + "  30" in lines
    assert "9–12  █" + " " * 23 + "   1" in lines
    assert any("validation" in line and "25.0%" in line and "50.0%" in line for line in lines)
    assert any(line.split() == ["│", "label24", "│", "25", "(7.7%)", "│", "25", "(7.7%)", "│"] for line in lines)
    assert "and 5 more labels with 1 to 5 training rows each." in lines
    assert "train: 1.50 labels per row, at most 3; 7 rows without a label" in lines
    start = lines.index("Warnings:")
    assert lines[start:] == [
        "Warnings:", "a [warning].", "- train row 3 [a]: one [red]text", r"train row 9: One [red]text\x1b", "Notes:",
        "a note.", "Not all.", "1 warning. `finetune help data-quality` explains them.",
    ]  # fmt: skip


def test_values_are_shown() -> None:
    split = SplitQuality(2, {}, TOKENS, 0.0, 0.0, values=ValueRange(-1.0, 0.5, 1.25, 3.0))
    text = printed(DataQuality(8, 12, {"train": split}, []))
    assert "train values: -1 to 3, mean 0.5, standard deviation 1.25" in text
    assert "No warnings." in text
