"""The rows whose label is probably wrong, by split, and their positions among the predicted rows of the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.report.run_record import RunRecord
from finetune.runs.label_errors import (
    MANY_ERRORS,
    MAX_CHECKED_ROWS,
    MAX_PLAUSIBLE_SHARE,
    MIN_CHECKED_ROWS,
    LabelError,
)

MAX_SHOWN = 50  # rows per split; the file has all of them


@dataclass(frozen=True)
class ErrorGroup:
    """The likely label errors of one split.

    Attributes:
        total: their number.
        checked: number of rows of the split whose label was checked; 0 if there are too few.
        shown: the first of them, each with its position among the predicted rows, None if it is not one of them.
    """

    split: str
    total: int
    checked: int
    shown: list[tuple[LabelError, int | None]]

    @property
    def note(self) -> str:
        """A sentence if the errors are too many to be plausible, otherwise ""."""
        return f"{MANY_ERRORS}." if self.total > MAX_PLAUSIBLE_SHARE * self.checked else ""


def error_groups(record: RunRecord) -> list[ErrorGroup] | None:
    """Return the likely label errors of each split; None if the labels were not checked."""
    if record.label_errors is None:
        return None
    groups = []
    for split, summary in record.data.items():
        errors = [error for error in record.label_errors if error.split == split]
        positions = _positions(record.predictions, errors[:MAX_SHOWN])
        rows = summary.rows - summary.label_name_rows
        checked = 0 if rows < MIN_CHECKED_ROWS and not errors else min(rows, MAX_CHECKED_ROWS)
        groups.append(ErrorGroup(split, len(errors), checked, list(zip(errors, positions, strict=False))))
    return groups


def error_positions(record: RunRecord) -> list[int] | None:
    """Return the positions of the likely label errors among the predicted rows; None if the labels were not checked."""
    if record.label_errors is None:
        return None
    return [position for position in _positions(record.predictions, record.label_errors) if position is not None]


def _positions(predictions: pa.Table | None, errors: list[LabelError]) -> list[int | None]:
    """Return the position of each error among the predicted rows, None if it is not one of them."""
    if predictions is None:
        return [None] * len(errors)
    result: dict[tuple[str, int], int] = {}
    for split in {error.split for error in errors}:
        positions = np.flatnonzero(pc.equal(predictions["split"], split).to_numpy())
        numbers = [error.row for error in errors if error.split == split]
        found = pc.index_in(pa.array(numbers), value_set=predictions["row"].take(pa.array(positions)).combine_chunks())
        indices = zip(numbers, found.to_pylist(), strict=True)
        result |= {(split, number): int(positions[index]) for number, index in indices if index is not None}
    return [result.get((error.split, error.row)) for error in errors]
