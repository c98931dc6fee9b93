"""Reading csv and tsv files. Every cell is read as it is written.

csv files follow RFC 4180: a text with the separator, a quotation mark or a line break is enclosed in quotation marks,
and a quotation mark in it is doubled. tsv files have no quoting: a quotation mark is text, as in the published GLUE
files. A txt file is read as csv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from finetune.data.cell_values import BATCH_ROWS, Column, batched, make_batch, require_columns
from finetune.data.compressed_files import open_text
from finetune.data.csv_delimiter import DELIMITERS, find_delimiter
from finetune.errors import DataError, shorten

# The optional first line in which spreadsheet programs name the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\1*[\r\n]*')
_HEAD_LINES = 100  # in which the header ends
_MAX_LABELS = 10_000  # more distinct values are probably numbers to predict
_QUOTING = (
    "enclose a text with a separator or a quotation mark in quotation marks, and double each quotation mark in it "
    "(do not escape it with a backslash)"
)


class _Row(NamedTuple):
    """A row: its number (0: the header), its cells, and the first and last line of the file that it covers."""

    number: int
    cells: list[str]
    line: int
    last_line: int


class _EmbeddedRow(NamedTuple):
    """A line inside a quoted text that looks like a row: the line, its label, and the row with the text."""

    text: str
    label: str
    row: _Row


class _Table(NamedTuple):
    """An open csv or tsv file: the cells of its header, its delimiter, and its rows, all of the same width."""

    header: list[str]
    delimiter: str
    rows: Iterator[_Row]


@contextmanager
def _open_table(file: Path, kind: str, columns: Sequence[Column], given: str | None) -> Iterator[_Table]:
    """Open a csv or tsv file.

    Args:
        given: the separator; None: a tab in a tsv file, otherwise that of the header.

    Raises:
        DataError: the header is malformed or lacks a column; or, while `rows` is read, a row is malformed.
    """
    csv.field_size_limit(2**31 - 1)
    with open_text(file, newline="") as text:
        head, skipped, delimiter = list(islice(text, _HEAD_LINES)), 0, given
        if head and (separator := _SEPARATOR_LINE.fullmatch(head[0])):
            delimiter, skipped = given or separator[1], 1
        if delimiter is None:
            names = [column.name for column in columns]
            delimiter = "\t" if kind == "tsv" else find_delimiter(head[skipped:], names)
        rows = _parse_rows(chain(head[skipped:], text), file, delimiter, quoted=kind != "tsv", skipped=skipped)
        header = next(rows, _Row(0, [], 1, 1))
        _check_header(file, header, columns, delimiter)
        rows = _rows_of_equal_width(rows, file, header.cells, _width_fix(kind, delimiter))
        yield _Table(header.cells, delimiter, rows)


def read_all_columns(
    file: Path, kind: str, columns: Sequence[Column], size: int, delimiter: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield all columns of a csv or tsv file as text, in batches of `size` rows; one empty batch if there are no rows.

    Columns without a name at the end of the header are skipped: they are empty.

    Args:
        columns: the columns that must exist.
        delimiter: what separates the cells; None: what separates those of the header.

    Raises:
        DataError: the header or a row is malformed; the message names the row and its line.
    """
    with _open_table(file, kind, columns, delimiter) as table:
        names = table.header[: _last_named(table.header)]
        schema = pa.schema([(name, pa.string()) for name in names])
        blocks = batched((row.cells[: len(names)] for row in table.rows), size)
        for block in chain([next(blocks, [])], blocks):
            cells = list(zip(*block, strict=True)) or [()] * len(names)
            yield pa.RecordBatch.from_arrays([pa.array(values, pa.string()) for values in cells], schema=schema)


def header_delimiter(file: Path, kind: str) -> str:
    """Return the separator of a csv or tsv file, where no column is known yet; DataError if the header is malformed."""
    with _open_table(file, kind, [], None) as table:
        return table.delimiter


def read_delimited(
    file: Path, kind: str, columns: Sequence[Column], delimiter: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a csv or tsv file in batches.

    Args:
        delimiter: what separates the cells; None: what separates those of the header.

    Raises:
        DataError: the header or a row is malformed; the message names the row and its line.
    """
    with _open_table(file, kind, columns, delimiter) as table:
        indices = [table.header.index(column.name) for column in columns]
        select_cells = itemgetter(*indices)  # two or three columns
        labels: set[str] = set()
        embedded: dict[str, _EmbeddedRow] = {}
        block = []
        for row in table.rows:
            if row.last_line > row.line and len(embedded) < _MAX_LABELS:
                for line in _embedded_rows(row, table.delimiter, indices[-1]):
                    embedded.setdefault(line.label, line)
            elif len(labels) < _MAX_LABELS:
                labels.add(row.cells[indices[-1]])
            block.append(select_cells(row.cells))
            if len(block) == BATCH_ROWS:
                yield _batch(block, columns)
                block = []
        _check_embedded_rows(file, embedded, labels)
        yield _batch(block, columns)


def _check_header(file: Path, header: _Row, columns: Sequence[Column], delimiter: str) -> None:
    """Raise DataError unless the header contains each of the columns exactly once."""
    named = [name for name in header.cells if name.strip()]
    if not named:
        raise DataError(f"{file} has no header; write the names of the columns in the first line")
    other = next((sign for sign in DELIMITERS if sign != delimiter and sign in named[0]), None)
    if other and len(named) == 1:
        raise DataError(
            f"{file} was read with the separator {delimiter!r}, but its header {shorten(named[0], 60)!r} seems to be "
            f"separated by {other!r}; set data.delimiter (in a command: --delimiter) to {other!r}, or remove it "
            "so that the header of each file decides"
        )
    require_columns(columns, named, str(file))


def _parse_rows(lines: Iterator[str], file: Path, delimiter: str, *, quoted: bool, skipped: int) -> Iterator[_Row]:
    """Yield the header (row 0) and the rows; blank lines are skipped.

    Args:
        skipped: number of lines of the file before `lines`.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    number, line = 0, skipped + 1
    try:
        for cells in reader:
            last = reader.line_num + skipped
            if cells:
                yield _Row(number, cells, line, last)
                number += 1
            line = last + 1
    except csv.Error as error:
        last = reader.line_num + skipped
        problem = (
            "a quotation mark opens a text that is never closed"
            if "end of data" in str(error)
            else f"text follows a closing quotation mark in line {last}"
        )
        where = f"row {number}" if number else "header"
        span = f"line {line}" if line == last else f"lines {line} to {last}"
        raise DataError(f"{file} {where} ({span}): {problem}; {_QUOTING}") from error


def _rows_of_equal_width(rows: Iterator[_Row], file: Path, header: Sequence[str], fix: str) -> Iterator[_Row]:
    """Yield the rows, and check that all have the same number of cells.

    Columns without a name at the end, such as those from a comma at the end of each line, must be empty.

    Raises:
        DataError: a row has another number of cells than the first row, or text in a column without a name.
    """
    named = _last_named(header)
    width = None
    for row in rows:
        count = len(row.cells)
        width = width or count
        surplus = next((cell for cell in row.cells[named:] if cell.strip()), None) if count > named else None
        if named <= count == width and surplus is None:
            yield row
            continue
        where = f"{file} row {row.number} (line {row.line})"
        if named <= count <= len(header) and surplus is not None:
            raise DataError(
                f"{where} has {surplus[:40]!r} in a column without a name; add its name to the header, or {fix}"
            )
        rule = f"row 1 has {width}" if surplus is None and count >= named else f"the header names {named} columns"
        raise DataError(f"{where} has {count} cell{'s' if count > 1 else ''}, but {rule}; {fix}")


def _last_named(header: Sequence[str]) -> int:
    """Return the number of columns up to the last one with a name."""
    return max(index for index, name in enumerate(header, start=1) if name.strip())


def _width_fix(kind: str, delimiter: str) -> str:
    """Return the fix for a wrong number of cells: usually a text contains the separator or a line break."""
    if kind == "tsv":
        return "a text in a tsv file cannot contain a tab or a line break: use csv, jsonl or parquet for such rows"
    return f"put quotation marks around a text that contains {delimiter!r} or a line break, or correct the row"


def _batch(block: Sequence[tuple[str, ...]], columns: Sequence[Column]) -> pa.RecordBatch:
    cells = list(zip(*block, strict=True)) or [()] * len(columns)
    return make_batch([pa.array(values, pa.string()) for values in cells], columns)


def _embedded_rows(row: _Row, delimiter: str, label: int) -> Iterator[_EmbeddedRow]:
    """Yield the lines inside a quoted text that could be rows, because the quotation marks were not intended.

    If a quotation mark in one row is closed by one in a later row, the text between them consists of the end of the
    first row, complete rows, and the beginning of the last row, up to the same column. The number of separators in each
    line must fit this. The first line may have more of them if it contains a quotation mark escaped with a backslash.
    """
    width = len(row.cells)
    for column, text in enumerate(row.cells):
        lines = [line for line in re.split(r"[\r\n]", text) if line]
        if len(lines) < 2:
            continue
        first, *complete, last = [line.split(delimiter) for line in lines]
        surplus = len(first) - (width - column)
        if surplus < 0 or (surplus and '\\"' not in lines[0]):
            continue
        if len(last) != column + 1 or any(len(cells) != width for cells in complete):
            continue
        if label >= column:
            yield _EmbeddedRow(lines[0], first[label - width], row)
        for line, cells in zip(lines[1:-1], complete, strict=True):
            yield _EmbeddedRow(line, cells[label], row)
        if label < column:
            yield _EmbeddedRow(lines[-1], last[label], row)


def _check_embedded_rows(file: Path, embedded: Mapping[str, _EmbeddedRow], labels: set[str]) -> None:
    """Raise DataError if a line inside a quoted text looks like a row and has a label that other rows have too.

    The file is well-formed csv even if an unintended quotation mark is closed in a later row, so there is no other sign
    of this mistake.
    """
    for label, line in embedded.items():
        if label in labels:
            raise DataError(
                f"{file} row {line.row.number} (lines {line.row.line} to {line.row.last_line}): a text in quotation "
                f"marks contains line breaks, and its line {line.text[:60]!r} looks like a row; {_QUOTING}; "
                "if it really is one text, use jsonl or parquet"
            )
