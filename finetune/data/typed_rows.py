"""Reading typed columns: parquet files, and Arrow files and streams (Feather version 2 is the Arrow file format)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.cell_values import BATCH_ROWS, Column, cells_from_arrow, make_batch, require_columns
from finetune.data.compressed_files import unpacked
from finetune.errors import DataError

ClassNames = Callable[[pa.Schema, str], list[str] | None]
TYPED = ("parquet", "arrow")
_ERRORS = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class TypedFile:
    """An open parquet or Arrow file.

    Attributes:
        rows: number of rows; None: unknown until all are read.
        batches: yields batches of at most so many rows, of these columns (None: all).
    """

    schema: pa.Schema
    rows: int | None
    batches: Callable[[int, Sequence[str] | None], Iterator[pa.RecordBatch]]


@contextmanager
def open_typed(file: Path, kind: str) -> Iterator[TypedFile]:
    """Open a parquet or Arrow file; DataError if it is damaged, also while its batches are read.

    Args:
        kind: parquet or arrow.
    """
    with unpacked(file) as source:
        if kind == "parquet":
            with _damage_reported(file, kind):
                opened = pq.ParquetFile(source)
            with opened:
                yield TypedFile(opened.schema_arrow, opened.metadata.num_rows, _parquet_batches(opened, file))
            return
        with _damage_reported(file, kind):
            mapped = pa.memory_map(str(source))
        with mapped:
            with _damage_reported(file, kind):
                is_stream = mapped.read(6) != b"ARROW1"
                mapped.seek(0)
                reader = pa.ipc.open_stream(mapped) if is_stream else pa.ipc.open_file(mapped)
            yield TypedFile(reader.schema, None, _arrow_batches(reader, file))


def _parquet_batches(
    opened: pq.ParquetFile, file: Path
) -> Callable[[int, Sequence[str] | None], Iterator[pa.RecordBatch]]:
    def batches(size: int, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with _damage_reported(file, "parquet"):
            yield from opened.iter_batches(size, columns=None if names is None else list(names))

    return batches


def _arrow_batches(
    reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader, file: Path
) -> Callable[[int, Sequence[str] | None], Iterator[pa.RecordBatch]]:
    def stored() -> Iterator[pa.RecordBatch]:
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from reader

    def batches(size: int, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with _damage_reported(file, "arrow"):
            for batch in stored():
                selected = batch if names is None else batch.select(list(names))
                yield from (selected.slice(first, size) for first in range(0, len(selected), size))

    return batches


@contextmanager
def _damage_reported(file: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read as {kind}: {reason}; create the file again") from error


def read_typed(
    file: Path, kind: str, columns: Sequence[Column], class_names: ClassNames | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet or Arrow file in batches.

    Args:
        class_names: returns the label names that the schema declares for the label column; None: there are none.

    Raises:
        DataError: the file is damaged, or a cell cannot be read as text; the message names the row.
    """
    with open_typed(file, kind) as opened:
        require_columns(columns, opened.schema.names, str(file))
        label = label_column(columns)
        names = class_names(opened.schema, label) if class_names and label else None
        first = 1
        for batch in opened.batches(BATCH_ROWS, [column.name for column in columns]):
            yield cells_of_table(pa.Table.from_batches([batch]), columns, str(file), first, names)
            first += len(batch)


def label_column(columns: Sequence[Column]) -> str | None:
    """Return the name of the column that holds all labels of a row, or None if each label has a column of its own."""
    return next((column.name for column in columns if column.key == "label_column"), None)


def declared_names(
    files: Sequence[tuple[Path, str]], columns: Sequence[Column], class_names: ClassNames
) -> list[str] | None:
    """Return the label names that the schemas of typed files declare, or None if none does.

    Args:
        files: each with its format.

    Raises:
        DataError: two files declare different names.
    """
    label = label_column(columns)
    first: tuple[Path, list[str]] | None = None
    for file, kind in files:
        if label is None or kind not in TYPED:
            continue
        with open_typed(file, kind) as opened:
            names = class_names(opened.schema, label)
        if names is not None and first is not None and names != first[1]:
            raise DataError(
                f"{file} and {first[0]} declare different classes for column '{label}' ({', '.join(names[:5])} and "
                f"{', '.join(first[1][:5])}); write them with the same classes"
            )
        first = first or (None if names is None else (file, names))
    return None if first is None else first[1]


def cells_of_table(
    table: pa.Table, columns: Sequence[Column], where: str, first: int, names: Sequence[str] | None
) -> pa.RecordBatch:
    """Return the columns as texts.

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
