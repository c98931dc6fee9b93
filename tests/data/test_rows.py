"""The rows of a split: finetune/data/rows.py."""

from __future__ import annotations

from finetune.data.rows import format_row_numbers


def test_long_row_lists_are_shortened() -> None:
    assert format_row_numbers([3]) == "row 3"
    assert format_row_numbers(list(range(1, 9))) == "rows 1, 2, 3, 4, 5 and 3 more"
