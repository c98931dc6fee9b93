"""Match the predicted rows of runs, and convert their labels and predictions to arrays.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.evaluation.intervals import Array

Key = tuple[int, tuple[str, ...]]  # row number, texts


@dataclass(frozen=True)
class RowMismatch:
    """How many rows differ: only in the first run, only in the second, in both with different labels."""

    only_first: int
    only_second: int
    other_label: int

    def text(self, first: str, second: str) -> str:
        """Return the counts as a text that names both runs."""
        return (
            f"rows only in {first}: {self.only_first:,}, only in {second}: {self.only_second:,}, in both with another "
            f"label: {self.other_label:,}"
        )


def rows_of_split(table: pa.Table, split: str) -> pa.Table:
    """Return the rows of a split from a table of predictions, sorted by row number."""
    rows = table.filter(pc.equal(table["split"], split))
    return rows.take(pc.sort_indices(rows["row"]))


def probabilities_of(table: pa.Table) -> Array | None:
    """Return the probabilities (N, C) of a table of predictions; None if rows have none or different numbers."""
    if "probabilities" not in table.column_names:
        return None
    column = table["probabilities"].combine_chunks()
    counts = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(counts) != 1 or not counts[0]:
        return None
    return np.asarray(column.flatten()).reshape(-1, counts[0])


def compare_rows(first: pa.Table, second: pa.Table) -> RowMismatch | None:
    """Return how the rows of a split differ in row number, text or label; None if they are the same."""
    left, right = _labels_by_row(first), _labels_by_row(second)
    other_label = sum(left[key] != right[key] for key in left.keys() & right.keys())
    only_first, only_second = len(left.keys() - right.keys()), len(right.keys() - left.keys())
    if not (only_first or only_second or other_label):
        return None
    return RowMismatch(only_first, only_second, other_label)


def row_texts(table: pa.Table) -> list[tuple[str, ...]]:
    """Return the texts of each row: one, or two for pairs."""
    columns = [table[name].to_pylist() for name in ("text", "text_1") if name in table.column_names]
    return list(zip(*columns, strict=True))


def _labels_by_row(table: pa.Table) -> dict[Key, Any]:
    """Return the label of each row; a set of labels does not depend on their order."""
    keys = zip(table["row"].to_pylist(), row_texts(table), strict=True)
    labels = (frozenset(label) if isinstance(label, list) else label for label in table["label"].to_pylist())
    return dict(zip(keys, labels, strict=True))


def as_array(column: pa.ChunkedArray, label_names: Sequence[str]) -> Array:
    """Return label names as class ids (N,), lists of names as 0/1 label sets (N, C), and numbers as values (N,).

    Raises:
        KeyError: a label is unknown.
    """
    ids = {name: index for index, name in enumerate(label_names)}
    cells = column.to_pylist()
    if pa.types.is_floating(column.type):
        return np.asarray(cells, dtype=np.float64)
    if not cells or isinstance(cells[0], str):
        return np.array([ids[name] for name in cells], dtype=np.int64)
    sets = np.zeros((len(cells), len(label_names)), dtype=np.int64)
    for row, names in enumerate(cells):
        sets[row, [ids[name] for name in names]] = 1
    return sets
