"""Checks of the rows of a split for missing texts and labels. Imports no torch, so that `finetune check` can use them.

N rows
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.cell_values import Column, empty_cells
from finetune.data.label_sets import with_label_sets
from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

_UNLABELED_MARKS = ("-1", "-1.0")  # used by data sets to mark a row without a label


def columns_to_read(data: DataSection, *, lists: bool) -> list[Column]:
    """Return the columns to read: the texts, then the label, which is a set of labels if `lists` is true.

    With `data.label_columns`, there is one column per label instead.
    """
    columns = [Column(data.text_column, "text_column")]
    if data.text_pair_column:
        columns.append(Column(data.text_pair_column, "text_pair_column"))
    if data.label_columns:
        return [*columns, *(Column(name, "label_columns") for name in data.label_columns)]
    return [*columns, Column(data.label_column, "label_column", lists)]


def checked_splits(
    splits: Mapping[str, RawSplit],
    data: DataSection,
    problem_type: str,
    declared: Sequence[str] | None,
    incomplete: Collection[str] = (),
) -> dict[str, RawSplit]:
    """Return the splits after their checks, with label sets as lists, and without rows that are skipped.

    Args:
        declared: the label names of the recipe.
        incomplete: the splits of which not all rows are here.

    Raises:
        DataError: a split is empty, a row has no text or no label, or a set of labels cannot be read.
    """
    if problem_type == "multi_label_classification":
        splits = with_label_sets(splits, data, declared, complete="train" not in incomplete)
    return {
        split: checked_rows(raw, data, problem_type, declared, complete=split not in incomplete)
        for split, raw in splits.items()
    }


def checked_rows(
    raw: RawSplit, data: DataSection, problem_type: str, declared: Sequence[str] | None, *, complete: bool = True
) -> RawSplit:
    """Return a split after its checks, without the rows that have no label if the recipe says so.

    Args:
        declared: the label names of the recipe; if -1 is one of them, it does not mark rows without a label.
        complete: whether these are all rows of the split; otherwise the rows with a label can come later.

    Raises:
        DataError: the split is empty, or a row has no text or no label.
    """
    if data.drop_unlabeled:
        minus_one_is_label = problem_type == "regression" or not set(declared or ()).isdisjoint(_UNLABELED_MARKS)
        raw = _drop_unlabeled(raw, data.label_column, () if minus_one_is_label else _UNLABELED_MARKS)
        if raw.dropped and not len(raw.rows):
            if not complete:
                return raw
            column = data.label_column
            raise DataError(
                f"{raw.source} has no row with a label in column '{column}'; remove this split from the recipe"
            )
    check_rows(raw, data)
    return raw


def _drop_unlabeled(raw: RawSplit, column: str, marks: Sequence[str]) -> RawSplit:
    """Return the split without the rows whose label is an empty cell or one of the texts in `marks`."""
    cells = raw.column(column)
    missing = _empty_cells(cells)
    if pa.types.is_string(cells.type) and marks:
        marked = pc.is_in(cells, value_set=pa.array(marks))
        missing |= np.asarray(marked.to_numpy(zero_copy_only=False), dtype=bool)
    if not missing.any():
        return raw
    return replace(raw.select(np.flatnonzero(~missing)), dropped=int(missing.sum()))


def check_rows(raw: RawSplit, data: DataSection) -> None:
    """Raise DataError if a split is empty, or has a row without text or label."""
    if not len(raw.rows):
        raise DataError(f"{raw.source} has no rows; add at least one")
    for name in filter(None, (data.text_column, data.text_pair_column, data.label_column)):
        cells = raw.column(name)
        fix = "give a value or remove the row"
        if name == data.label_column:
            fix += ", or set data.drop_unlabeled: true to skip rows without a label"
        empty = np.flatnonzero(_empty_cells(cells))
        if len(empty):
            raise DataError(f"{raw.describe_rows(empty)}: column '{name}' is empty; {fix}")
        if pa.types.is_list(cells.type):
            lengths = pc.list_value_length(cells).to_numpy()
            blank = _empty_cells(pc.list_flatten(cells))
            rows = np.unique(np.repeat(np.arange(len(cells)), lengths)[blank])
            if len(rows):
                raise DataError(
                    f"{raw.describe_rows(rows)}: column '{name}' lists an empty label; give its name or remove it"
                )


def _empty_cells(cells: pa.ChunkedArray) -> np.ndarray:
    """Return which cells are null or contain only white space, (N,)."""
    parts = [empty_cells(chunk) for chunk in cells.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
