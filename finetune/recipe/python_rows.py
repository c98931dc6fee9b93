"""Rows that a Python program has in memory, as files that a recipe can name."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import DataError

SPLITS = ("train", "validation", "test")
_PREFIX = "finetune-rows-"
_GIVE = (
    "give a pandas DataFrame, a datasets.Dataset, a list of mappings, or a mapping of train, validation and test to "
    "tables"
)


def write_rows(rows: object) -> dict[str, str]:
    """Write rows to parquet files in a temporary folder, which is deleted at the end of the process.

    Args:
        rows: a table of training rows, or a mapping of split name to table. A table is a pandas DataFrame, a
            `datasets.Dataset`, a table with the Arrow interface (polars, pyarrow), or a list of mappings.

    Returns:
        Split name -> file.

    Raises:
        DataError: the rows have another type, or a column cannot be written.
    """
    tables = rows if isinstance(rows, Mapping) else {"train": rows}
    if unknown := [str(name) for name in tables if name not in SPLITS]:
        raise DataError(f"rows: '{unknown[0]}' is not one of the splits train, validation and test; {_GIVE}")
    if "train" not in tables:
        raise DataError(f"rows: there is no split train; {_GIVE}")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    atexit.register(_delete, folder, os.getpid())
    files = {split: folder / f"{split}.parquet" for split in tables}
    for split, file in files.items():
        _write_table(tables[split], file, f"rows ({split})")
    return {split: str(file) for split, file in files.items()}


def is_written_by_python(file: str) -> bool:
    """Return whether `write_rows` wrote a file."""
    return Path(file).parent.name.startswith(_PREFIX)


def _delete(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not delete the files of its parent
        shutil.rmtree(folder, ignore_errors=True)


def _write_table(table: Any, file: Path, where: str) -> None:
    import pyarrow as pa  # `import finetune` and the check of a recipe's keys do not need it
    import pyarrow.parquet as pq

    try:
        if hasattr(table, "features") and hasattr(table, "to_parquet"):  # a data set, with its class names
            table.to_parquet(str(file))
        elif hasattr(table, "iloc"):
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), file)
        elif isinstance(table, list):
            pq.write_table(pa.Table.from_pylist(table), file)
        elif isinstance(table, pa.Table) or hasattr(table, "__arrow_c_stream__"):
            pq.write_table(pa.table(table), file)
        else:
            raise DataError(f"{where} is a {type(table).__name__}; {_GIVE}")
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{where} cannot be written as a table: {reason}; the values of a column must have one type"
        ) from error
