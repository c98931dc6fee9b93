"""The rows of a split: finetune/data/rows.py."""

from __future__ import annotations

from finetune.data.rows import row_list


def test_long_row_lists_are_shortened() -> None:
    assert row_list([3]) == "row 3"
    assert row_list(list(range(1, 9))) == "rows 1, 2, 3, 4, 5 and 3 more"
