from __future__ import annotations

import pytest

from finetune.runs.results import SplitSummary


@pytest.mark.parametrize(
    ("shared", "note_start"),
    [(0, ""), (4, "All 4 test rows are also training rows"), (1, "1 of 4 test rows are also training rows")],
)
def test_rows_that_are_also_training_rows_are_reported(shared: int, note_start: str) -> None:
    note = SplitSummary(4, {}, 1.0, 1, 0.0, shared).overlap_note("test")
    assert note.startswith(note_start)
    assert bool(note) == bool(shared)
