"""Reading the rows of every split, with checks for missing texts and labels.

Rows stay in Arrow files on disk, so a data set may be larger than memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets
import pyarrow as pa

from finetune.data.cell_values import Column, arrow_schema, batches_from_objects
from finetune.data.file_rows import read_files
from finetune.data.named_dataset import read_named
from finetune.data.row_checks import checked_splits, columns_to_read
from finetune.data.rows import RawSplit
from finetune.recipe.data_files import expand_files
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
    elif data.train_file:
        files = {split: expand_files(entries) for split, entries in data.local_files().items()}
        splits = {split: read_files(listed, columns, data.delimiter) for split, listed in files.items()}
    else:
        splits = read_named(data, columns)
    return checked_splits(splits, data, problem_type, declared)


def _from_recipe(rows: list[dict[str, object]], where: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows that are written in the recipe."""
    table = pa.Table.from_batches(batches_from_objects(iter(rows), columns, where), arrow_schema(columns))
    return RawSplit(datasets.Dataset(datasets.table.InMemoryTable(table)), where)
