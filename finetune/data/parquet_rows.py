"""Reading typed columns: parquet files, and data sets loaded by the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.cell_values import BATCH_ROWS, Column, cells_from_arrow, make_batch, require_columns
from finetune.errors import DataError


def read_parquet(file: Path, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet file in batches.

    Raises:
        DataError: the file is damaged, or a cell cannot be read as text; the message names the row.
    """
    with _open(file) as opened:
        schema = opened.schema_arrow
        require_columns(columns, schema.names, str(file))
        names = class_names(schema, columns[-1].name)
        first = 1
        for batch in _batches(opened, file, [column.name for column in columns]):
            yield _convert(pa.Table.from_batches([batch]), columns, str(file), first, names)
            first += len(batch)


def parquet_class_names(file: Path, label: str) -> list[str] | None:
    """Return the label names of a ClassLabel column in a parquet file written by `datasets`, or None."""
    with _open(file) as opened:
        return class_names(opened.schema_arrow, label)


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged_file(file, error) from error


def _batches(opened: pq.ParquetFile, file: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from opened.iter_batches(BATCH_ROWS, columns=list(names))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged_file(file, error) from error


def _damaged_file(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read as parquet: {' '.join(str(error).split())}; create the file again")


def read_dataset(rows: datasets.Dataset, columns: Sequence[Column], where: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a loaded data set in batches.

    Raises:
        DataError: a column is missing, or a cell cannot be read as text; the message names the row.
    """
    require_columns(columns, rows.column_names, where)
    names = feature_names(rows.features, columns[-1].name)
    selected = rows.select_columns([column.name for column in columns]).with_format("arrow")
    first = 1
    for table in selected.iter(batch_size=BATCH_ROWS):
        yield _convert(table, columns, where, first, names)
        first += len(table)


def _convert(
    table: pa.Table, columns: Sequence[Column], where: str, first: int, names: Sequence[str] | None
) -> pa.RecordBatch:
    arrays = []
    for column in columns:
        cells = table[column.name].combine_chunks()
        label = column.key == "label_column"
        arrays.append(cells_from_arrow(cells, column, where, first, names if label else None))
    return make_batch(arrays, columns)


def class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the label names of a ClassLabel column from the metadata that `datasets` writes to a schema, or None."""
    label_schema = pa.schema([schema.field(label)], metadata=schema.metadata)
    try:
        return feature_names(datasets.Features.from_arrow_schema(label_schema), label)
    except (ValueError, TypeError, KeyError, AttributeError):  # metadata of another tool, or damaged
        return None


def feature_names(features: datasets.Features, label: str) -> list[str] | None:
    """Return the label names of a ClassLabel feature or of a list of them, or None."""
    feature = features[label]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
