"""Rows to predict: all columns of a file as they are, and its text columns, in windows of some thousand rows.

N rows of a window
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pyarrow as pa

from finetune.data.cell_values import Column, batched, cells_from_arrow, cells_from_values, empty_cells, require_columns
from finetune.data.compressed_files import open_bytes
from finetune.data.csv_rows import read_all_columns
from finetune.data.file_formats import readable
from finetune.data.file_signatures import archive_type
from finetune.data.json_rows import read_typed_objects
from finetune.data.typed_rows import TYPED, open_typed
from finetune.errors import DataError
from finetune.recipe.data_files import COMPRESSIONS, compression, file_format

INPUT_FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt")
STANDARD_INPUT = "standard input"
_SAMPLE_BYTES = 2**20


@dataclass(frozen=True)
class InputFile:
    """A file to predict.

    Attributes:
        path: the file; None for lines from standard input, which are read once.
        format: one of INPUT_FORMATS; a txt file has one text per line.
        delimiter: what separates the cells of a csv file; None: what separates those of its header.
    """

    path: Path | None
    format: str
    delimiter: str | None = None

    def estimated_rows(self) -> int | None:
        """Return the approximate number of rows, from the beginning of the file; None if it is unknown."""
        if self.path is None or self.format in ("json", "arrow") or compression(self.path):
            return None
        if self.format == "parquet":
            with open_typed(self.path, self.format) as opened:
                return opened.rows
        with self.path.open("rb") as content:
            sample = content.read(_SAMPLE_BYTES)
        return round(sample.count(b"\n") * self.path.stat().st_size / max(1, len(sample)))


@dataclass(frozen=True)
class Window:
    """Consecutive rows of a file.

    Attributes:
        first: the number of the first row, counted from 1.
        rows: all columns, as they are in the file: Arrow columns, or the objects of a json file.
        texts: the one or two text columns, each with N texts.
    """

    first: int
    rows: pa.RecordBatch | list[Mapping[str, object]]
    texts: list[list[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> list[str]:
        """Return the names of all columns."""
        if isinstance(self.rows, pa.RecordBatch):
            return list(self.rows.schema.names)
        return list(dict.fromkeys(name for row in self.rows for name in row))


@contextmanager
def open_input(source: Path, input_format: str | None, delimiter: str | None = None) -> Iterator[InputFile]:
    """Yield the file to predict.

    Standard input other than lines of text, and a pipe, are copied to a temporary file: reading starts at the end of
    the input, and needs that much space in the folder for temporary files.

    Args:
        source: a file, or "-" for standard input.
        input_format: one of INPUT_FORMATS; None: by the ending of the file name, and txt for standard input.
        delimiter: see `InputFile`.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be copied.
    """
    from_standard_input = source == Path("-")
    kind = input_format or ("txt" if from_standard_input else file_format(source))
    if source.is_dir():
        raise DataError(f"{source} is a folder; name a file with the rows to predict")
    if kind not in INPUT_FORMATS:
        raise DataError(
            f"the format of {source} is unknown (its name ends in '{source.suffix}'); use {', '.join(INPUT_FORMATS)}, "
            "or set --input-format"
        )
    if from_standard_input and kind == "txt":
        yield InputFile(None, kind)
        return
    if not from_standard_input and (not source.exists() or source.is_file()):
        yield InputFile(source, kind, delimiter)  # a missing file is reported when it is read
        return
    with TemporaryDirectory(prefix="finetune-") as folder:
        copy = Path(folder, f"input.{kind}")
        name = STANDARD_INPUT if from_standard_input else str(source)
        try:
            with copy.open("xb") as sink:
                if from_standard_input:
                    shutil.copyfileobj(sys.stdin.buffer, sink)
                else:
                    with source.open("rb") as pipe:
                        shutil.copyfileobj(pipe, sink)
        except OSError as error:
            raise DataError(
                f"{name} cannot be copied to the folder for temporary files, {folder}: {error.strerror or error}; free "
                "disk space, set TMPDIR to another folder, or name a file"
            ) from error
        copy = _with_archive_ending(copy)
        try:
            yield InputFile(copy, kind, delimiter)
        except DataError as error:
            raise DataError(
                str(error)
                .replace(f"the name of {copy} ends in {''.join(copy.suffixes)}", f"{name} is read as {kind}")
                .replace(str(copy), name)
            ) from error


def _with_archive_ending(copy: Path) -> Path:
    """Return the path of a copy, after adding the ending of its compression if it is an archive."""
    with copy.open("rb") as content:
        packed = archive_type(content.read(8))
    if packed is None:
        return copy
    ending = next(ending for ending, name in COMPRESSIONS.items() if name == packed)
    return copy.rename(copy.with_name(copy.name + ending))


def read_windows(file: InputFile, columns: Sequence[Column], size: int) -> Iterator[Window]:
    """Yield all rows of a file, `size` at a time.

    Args:
        columns: the one or two text columns.

    Raises:
        DataError: the file cannot be read or has no rows, a text column is missing, or a cell of it is empty or cannot
            be read as text; the message names the row or line.
    """
    if file.path is None:
        yield from _numbered(_line_batches(sys.stdin.buffer, STANDARD_INPUT, columns, size), columns, STANDARD_INPUT)
        return
    with readable(file.path, file.format):
        yield from _numbered(_row_batches(file.path, file, columns, size), columns, str(file.path))


def _row_batches(
    path: Path, file: InputFile, columns: Sequence[Column], size: int
) -> Iterator[pa.RecordBatch | list[Mapping[str, object]]]:
    kind = file.format
    if kind in ("csv", "tsv"):
        yield from read_all_columns(path, kind, columns, size, file.delimiter)
    elif kind in TYPED:
        with open_typed(path, kind) as opened:
            require_columns(columns, opened.schema.names, str(path))
            yield from opened.batches(size, None)
    elif kind == "txt":
        with open_bytes(path) as lines:
            yield from _line_batches(lines, str(path), columns, size)
    else:
        for number, block in enumerate(batched(iter(read_typed_objects(path, kind)), size)):
            if not number:
                require_columns(columns, list(dict.fromkeys(name for row in block for name in row)), str(path))
            yield block


def _line_batches(lines: BinaryIO, where: str, columns: Sequence[Column], size: int) -> Iterator[pa.RecordBatch]:
    """Yield lines of text as one column."""
    if len(columns) > 1:
        raise DataError(
            f"{where} has one text per line, but the model reads pairs of texts "
            f"({' and '.join(column.name for column in columns)}); give the pairs as csv, tsv or jsonl (--input-format)"
        )
    first = 1
    for block in batched(iter(lines), size):
        texts = []
        for number, line in enumerate(block, start=first):
            try:
                texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where} line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); convert it to UTF-8"
                ) from error
        yield pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], names=[columns[0].name])
        first += len(block)


def _numbered(
    batches: Iterator[pa.RecordBatch | list[Mapping[str, object]]], columns: Sequence[Column], where: str
) -> Iterator[Window]:
    """Yield the batches as windows with their texts."""
    first = 1
    for rows in batches:
        if len(rows):
            yield Window(first, rows, [_texts(rows, column, where, first) for column in columns])
        first += len(rows)
    if first == 1:
        raise DataError(f"{where} has no rows; add at least one")


def _texts(rows: pa.RecordBatch | list[Mapping[str, object]], column: Column, where: str, first: int) -> list[str]:
    """Return a text column, read by the rules of training; DataError for a cell that is empty or has no text."""
    if isinstance(rows, pa.RecordBatch):
        texts = cells_from_arrow(rows.column(rows.schema.names.index(column.name)), column, where, first)
    else:
        texts = cells_from_values([row.get(column.name) for row in rows], column, where, first)
    empty = empty_cells(texts)
    if empty.any():
        raise column.error(where, first + int(empty.argmax()), "is empty; give a text or remove the row")
    return texts.to_pylist()  # type: ignore[no-any-return]
