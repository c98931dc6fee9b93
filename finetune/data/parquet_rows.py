"""Reading typed columns: parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.cell_values import BATCH_ROWS, Column, cells_from_arrow, make_batch, require_columns
from finetune.errors import DataError

ClassNames = Callable[[pa.Schema, str], list[str] | None]


def read_parquet(
    file: Path, columns: Sequence[Column], class_names: ClassNames | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet file in batches.

    Args:
        class_names: returns the label names that the schema declares for the label column; None: there are none.

    Raises:
        DataError: the file is damaged, or a cell cannot be read as text; the message names the row.
    """
    with open_parquet(file) as opened:
        schema = opened.schema_arrow
        require_columns(columns, schema.names, str(file))
        names = class_names(schema, columns[-1].name) if class_names else None
        first = 1
        for batch in parquet_batches(opened, file, BATCH_ROWS, [column.name for column in columns]):
            yield cells_of_table(pa.Table.from_batches([batch]), columns, str(file), first, names)
            first += len(batch)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file; DataError if it is damaged."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged_file(file, error) from error


def parquet_batches(
    opened: pq.ParquetFile, file: Path, size: int, names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield batches of `size` rows of these columns (None: all); DataError if the file is damaged."""
    try:
        yield from opened.iter_batches(size, columns=None if names is None else list(names))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged_file(file, error) from error


def _damaged_file(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read as parquet: {' '.join(str(error).split())}; create the file again")


def cells_of_table(
    table: pa.Table, columns: Sequence[Column], where: str, first: int, names: Sequence[str] | None
) -> pa.RecordBatch:
    """Return the columns as texts, or lists of texts.

    Args:
        first: the number of the first row.
        names: the label names of a ClassLabel column.

    Raises:
        DataError: a cell cannot be read as text; the message names the row.
    """
    arrays = []
    for column in columns:
        cells = table[column.name].combine_chunks()
        label = column.key == "label_column"
        arrays.append(cells_from_arrow(cells, column, where, first, names if label else None))
    return make_batch(arrays, columns)
