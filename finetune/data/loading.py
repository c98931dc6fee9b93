"""Reading the rows of every split, with checks for missing texts and labels.

Rows stay in Arrow files on disk, so a data set may be larger than memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.cell_values import Column, arrow_schema, batches_from_objects, empty_cells
from finetune.data.class_names import parquet_class_names, schema_class_names
from finetune.data.file_formats import file_format, read_file
from finetune.data.named_dataset import read_named
from finetune.data.row_cache import store_rows
from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.recipe import DataSection

_UNLABELED_MARKS = ("-1", "-1.0")  # used by data sets to mark a row without a label


def quiet_datasets() -> None:
    """Turn off the progress bars and log messages of `datasets`; errors are reported as DataError."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)


def columns_to_read(data: DataSection, *, lists: bool) -> list[Column]:
    """Return the columns to read: the texts, then the label, which is a list if `lists` is true."""
    columns = [Column(data.text_column, "text_column")]
    if data.text_pair_column:
        columns.append(Column(data.text_pair_column, "text_pair_column"))
    return [*columns, Column(data.label_column, "label_column", lists)]


def read_splits(
    data: DataSection, problem_type: str = "single_label_classification", declared: Sequence[str] | None = None
) -> dict[str, RawSplit]:
    """Return split name -> rows for every split in the recipe.

    Args:
        declared: the label names of the recipe; if -1 is one of them, it does not mark rows without a label.

    Raises:
        DataError: a file or data set cannot be read, or a row is wrong; the message names the file and the row (counted
            from 1, without the header).
    """
    columns = columns_to_read(data, lists=problem_type == "multi_label_classification")
    if data.train_rows is not None:
        named = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
        splits = {
            split: _from_recipe(rows, f"data.{split}_rows", columns)
            for split, rows in named.items()
            if rows is not None
        }
    elif data.train_file is not None:
        splits = {split: _from_file(file, columns) for split, file in data.local_files().items()}
    else:
        splits = read_named(data, columns)
    minus_one_is_label = problem_type == "regression" or not set(declared or ()).isdisjoint(_UNLABELED_MARKS)
    marks = () if minus_one_is_label else _UNLABELED_MARKS
    for split, raw in splits.items():
        if data.drop_unlabeled:
            splits[split] = _drop_unlabeled(raw, data.label_column, marks)
        check_rows(splits[split], data)
    return splits


def _from_recipe(rows: list[dict[str, object]], where: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows that are written in the recipe."""
    table = pa.Table.from_batches(batches_from_objects(iter(rows), columns, where), arrow_schema(columns))
    return RawSplit(datasets.Dataset(datasets.table.InMemoryTable(table)), where)


def _from_file(name: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a file."""
    file = Path(name)
    rows = store_rows(read_file(file, columns, schema_class_names), arrow_schema(columns), name)
    names = parquet_class_names(file, columns[-1].name) if file_format(file) == "parquet" else None
    return RawSplit(rows, name, class_names=names)


def _drop_unlabeled(raw: RawSplit, column: str, marks: Sequence[str]) -> RawSplit:
    """Return the split without the rows whose label is an empty cell or one of the texts in `marks`."""
    cells = raw.column(column)
    missing = _empty_cells(cells)
    if pa.types.is_string(cells.type) and marks:
        marked = pc.is_in(cells, value_set=pa.array(marks))
        missing |= np.asarray(marked.to_numpy(zero_copy_only=False), dtype=bool)
    if not missing.any():
        return raw
    if missing.all():
        raise DataError(f"{raw.source} has no row with a label in column '{column}'; remove this split from the recipe")
    return replace(raw.select(np.flatnonzero(~missing)), dropped=int(missing.sum()))


def check_rows(raw: RawSplit, data: DataSection) -> None:
    """Raise DataError if a split is empty, or has a row without text or label."""
    if not raw.rows.num_rows:
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
