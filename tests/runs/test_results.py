from __future__ import annotations

import pytest

from finetune.runs.results import MetricValue, SplitSummary, format_number


@pytest.mark.parametrize(
    ("shared", "note_start"),
    [(0, ""), (4, "All 4 test rows are also training rows"), (1, "1 of 4 test rows are also training rows")],
)
def test_rows_that_are_also_training_rows_are_reported(shared: int, note_start: str) -> None:
    note = SplitSummary(4, {}, 1.0, 1, 0.0, shared).overlap_note("test")
    assert note.startswith(note_start)
    assert bool(note) == bool(shared)


def test_many_truncated_rows_are_reported() -> None:
    hint = "raise data.max_length to 256, or set data.long_text"
    few, many = (
        SplitSummary(4, {}, 1.0, 1, share, true_lengths={"99": 200}, truncation_hint=hint) for share in (0.05, 0.06)
    )
    assert few.notes("test") == []
    assert many.notes("test") == [f"6% of the test rows were truncated, and 1 % has more than 200 tokens: {hint}."]
    assert SplitSummary(4, {}, 1.0, 1, 0.5).notes("test") == []  # of an earlier version


def test_the_longest_row_is_that_before_truncation() -> None:
    assert SplitSummary(4, {}, 1.0, 128, 0.5, true_lengths={"99": 200, "100": 310}).longest() == 310
    assert SplitSummary(4, {}, 1.0, 128, 0.5).longest() == 128


def test_numbers_that_would_be_shown_as_0_have_significant_digits() -> None:
    shown = [format_number(value) for value in (0.8844, 0.0, 0.00049, 2.14e-6, -3e-5, 1e-17, None)]
    assert shown == ["0.884", "0.000", "0.00049", "2.1e-06", "-3e-05", "0.000", "undefined"]
    assert MetricValue(1e-6, 5e-7, 0.25).interval() == "[5e-07, 0.250]"
