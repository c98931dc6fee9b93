"""Reading the rows of every split, with checks for missing texts and labels.

Rows stay in Arrow files on disk, so a data set may be larger than memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from finetune.data.cell_values import Column, arrow_schema, batches_from_objects
from finetune.data.class_names import parquet_class_names, schema_class_names
from finetune.data.file_formats import file_format, read_file
from finetune.data.named_dataset import read_named
from finetune.data.row_cache import store_rows
from finetune.data.row_checks import checked_rows, columns_to_read
from finetune.data.rows import RawSplit
from finetune.recipe.data_section import DataSection


def quiet_datasets() -> None:
    """Turn off the progress bars and log messages of `datasets`; errors are reported as DataError."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)


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
    return {split: checked_rows(raw, data, problem_type, declared) for split, raw in splits.items()}


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
