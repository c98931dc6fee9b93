"""Writing rows with new columns as csv, tsv, jsonl or parquet: the columns of the input come first, unchanged.

N rows of a window
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.cell_values import is_list
from finetune.data.input_rows import Window
from finetune.errors import DataError

OUTPUT_FORMATS = ("csv", "tsv", "jsonl", "parquet")
_ROW_GROUP = 65_536  # rows of a parquet row group


class RowWriter(Protocol):
    """Writes the rows of all windows, in order."""

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Write the rows of a window with the columns `added`, of N rows.

        Raises:
            DataError: the format cannot hold a value or a column of these rows.
        """

    def close(self) -> None:
        """Write what is still in memory."""


class DelimitedWriter:
    """Writes csv, or tsv without quoting. A list or an object in a cell is written as JSON.

    A csv row with a carriage return has all its cells in quotation marks: the csv module would write it without them,
    and readers would take it for the end of the row.
    """

    def __init__(self, stream: TextIO, kind: str) -> None:
        self._kind, self._names = kind, list[str]()
        quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == "tsv" else {}
        self._writer = csv.writer(stream, lineterminator="\n", **quoting)  # type: ignore[arg-type]
        self._quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Write the rows of a window; see `RowWriter`."""
        if not self._names:
            self._names = window.names()
            self._write_rows([[*self._names, *added.schema.names]], window, header=True)
        columns = _text_columns(window, self._names) + _texts_of_columns(added)
        self._write_rows(list(zip(*columns, strict=True)), window)

    def _write_rows(self, rows: Sequence[Sequence[str]], window: Window, *, header: bool = False) -> None:
        if self._kind == "tsv":
            for number, row in enumerate(rows, start=window.first):
                if any("\t" in cell or "\n" in cell or "\r" in cell for cell in row):
                    where = "the header" if header else f"row {number}"
                    raise DataError(
                        f"{where} has a tab or a line break, which a tsv file cannot hold; write csv, jsonl or parquet"
                    )
        for row in rows:
            writer = self._quoting_writer if any("\r" in cell for cell in row) else self._writer
            writer.writerow(row)

    def close(self) -> None:
        """Do nothing: all rows are written."""


class JsonLinesWriter:
    """Writes one object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Write the rows of a window; see `RowWriter`."""
        _check_unique(window, "jsonl")
        rows = window.rows
        if isinstance(rows, pa.RecordBatch):
            columns = _values_of_columns(rows)
            rows = [dict(zip(rows.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
        columns = _values_of_columns(added)
        names = added.schema.names
        for row, values in zip(rows, zip(*columns, strict=True), strict=True):
            line = {**row, **dict(zip(names, values, strict=True))}
            self._stream.write(json.dumps(line, ensure_ascii=False, default=_as_json) + "\n")

    def close(self) -> None:
        """Do nothing: all rows are written."""


class ParquetWriter:
    """Writes a parquet file with the types of the input columns."""

    def __init__(self, path: Path) -> None:
        self._path, self._schema = path, pa.schema([])
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Write the rows of a window; see `RowWriter`."""
        if self._writer is None:
            _check_unique(window, "parquet")
        batch = self._typed(window)
        schema = pa.schema([*batch.schema, *added.schema], metadata=batch.schema.metadata)
        if self._writer is None:
            self._schema, self._writer = batch.schema, pq.ParquetWriter(self._path, schema)
        self._waiting.append(pa.RecordBatch.from_arrays([*batch.columns, *added.columns], schema=schema))
        if sum(map(len, self._waiting)) >= _ROW_GROUP:
            self._flush()

    def _typed(self, window: Window) -> pa.RecordBatch:
        """Return the rows as Arrow columns; the types of objects are those of the first window."""
        if isinstance(window.rows, pa.RecordBatch):
            # The metadata of `datasets` lists all columns, and would not be true of the new file.
            metadata = {
                key: value for key, value in (window.rows.schema.metadata or {}).items() if key != b"huggingface"
            }
            return window.rows.replace_schema_metadata(metadata or None)
        names = self._schema.names or window.names()
        if unknown := set(window.names()) - set(names):
            raise _new_column(window, sorted(unknown)[0])
        fields = []
        for name in names:
            values = [row.get(name) for row in window.rows]
            kind = self._schema.field(name).type if self._schema.names else None
            try:
                if kind is not None and not _fits(pa.infer_type(values), kind):  # pa.array would cut 2.5 to 2
                    raise pa.ArrowTypeError(f"its type is {kind}")
                array = pa.array(values, kind)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
                raise DataError(
                    f"rows {window.first} to {window.first + len(window) - 1}: column '{name}' has a value that does "
                    f"not fit its type in parquet ({' '.join(str(error).split())[:120]}); write jsonl"
                ) from error
            fields.append((name, array.cast(pa.string()) if pa.types.is_null(array.type) else array))
        return pa.RecordBatch.from_arrays([array for _, array in fields], names=[name for name, _ in fields])

    def _flush(self) -> None:
        if self._writer is not None and self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=_ROW_GROUP)
        self._waiting = []

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def discard(self) -> None:
        """Close the file after an error, without an error of its own."""
        with suppress(Exception):
            if self._writer is not None:
                self._writer.close()


def readable_numbers(rows: pa.RecordBatch) -> list[pa.Array]:
    """Return the columns with float32 numbers in their shortest decimal form: 0.1, not 0.10000000149."""
    columns = []
    for column in rows.columns:
        if column.type == pa.float32():
            column = column.cast(pa.string()).cast(pa.float64())
        elif is_list(column.type) and column.type.value_type == pa.float32():
            column = column.cast(pa.list_(pa.float32())).cast(pa.list_(pa.string())).cast(pa.list_(pa.float64()))
        columns.append(column)
    return columns


def _fits(kind: pa.DataType, target: pa.DataType) -> bool:
    """Return whether a column of a type can hold values of another without a change: all keys of objects, no 2.5 as 2.

    Args:
        kind: the type of the values.
        target: the type of the column.
    """
    if pa.types.is_struct(kind) and pa.types.is_struct(target):
        fields = {field.name: field.type for field in target}
        return all(field.name in fields and _fits(field.type, fields[field.name]) for field in kind)
    if pa.types.is_list(kind) and pa.types.is_list(target):
        return _fits(kind.value_type, target.value_type)
    integer_as_float = pa.types.is_integer(kind) and pa.types.is_floating(target)
    return bool(kind == target or pa.types.is_null(kind) or integer_as_float)


def _values_of_columns(rows: pa.RecordBatch) -> list[list[object]]:
    """Return the columns as Python values.

    Raises:
        DataError: a value has no form in Python, such as a date after the year 9999.
    """
    columns = []
    for name, column in zip(rows.schema.names, readable_numbers(rows), strict=True):
        try:
            columns.append(column.to_pylist())
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"column '{name}' ({column.type}) has a value that only parquet can hold ({error}); write parquet"
            ) from error
    return columns


def _text_columns(window: Window, names: Sequence[str]) -> list[list[str]]:
    """Return all columns of the input as texts."""
    if isinstance(window.rows, pa.RecordBatch):
        return _texts_of_columns(window.rows)
    if unknown := set(window.names()) - set(names):
        raise _new_column(window, sorted(unknown)[0])
    return [[_cell_text(row.get(name)) for row in window.rows] for name in names]


def _new_column(window: Window, name: str) -> DataError:
    number = next(number for number, row in enumerate(window.rows, start=window.first) if name in row)
    return DataError(
        f"row {number} has the key '{name}', which the first rows do not have; only jsonl can hold rows with different "
        "keys: write jsonl"
    )


def _texts_of_columns(rows: pa.RecordBatch) -> list[list[str]]:
    """Return Arrow columns as texts; null is an empty text."""
    return [
        [value if type(value) is str else _cell_text(value) for value in values] for values in _values_of_columns(rows)
    ]


def _cell_text(value: object) -> str:
    """Return a value as it is written in a csv cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=_as_json)
    return text[1:-1] if text.startswith('"') else text


def _as_json(value: object) -> str:
    """Return a value that JSON has no type for as text."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise DataError(f"a column has values of type {type(value).__name__}, which only parquet can hold; write parquet")


def _check_unique(window: Window, kind: str) -> None:
    names = window.names()
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"the input has two columns '{repeated}', which {kind} cannot hold; rename one, or write csv")
