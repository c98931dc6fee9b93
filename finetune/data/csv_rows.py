"""Rows of csv and tsv files, every cell as it is written.

csv is read by RFC 4180: a text with a comma, a quotation mark or a line break stands in quotation marks, and a mark
within is doubled. A tab-separated file has no quoting: a quotation mark is text, as in the published GLUE files.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import pyarrow as pa

from finetune.data.cells import BATCH, Column, batch_of, require_columns
from finetune.errors import DataError

# A first line with which spreadsheets say what separates the cells.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\1*[\r\n]*')
_MOST_LABELS = 10_000  # more are numbers to predict
_QUOTING = (
    "a text with a separator or a quotation mark stands in quotation marks, and each mark within is doubled, "
    "not escaped by a backslash"
)


class _Row(NamedTuple):
    """One row: its number (0: the header), its cells, and the lines where it begins and ends."""

    number: int
    cells: list[str]
    line: int
    last_line: int


class _RowWithin(NamedTuple):
    """A line within a text that looks like a row: the line, its label, and the row that the text belongs to."""

    text: str
    label: str
    row: _Row


def read_delimited(file: Path, kind: str, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a csv or tsv file in batches.

    Raises:
        DataError: the header or a row is malformed; the message names the row and its line.
    """
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as text:
        delimiter, skipped = "\t" if kind == "tsv" else ",", 0
        if separator := _SEPARATOR_LINE.fullmatch(text.readline()):
            delimiter, skipped = separator[1], 1
        else:
            text.seek(0)
        rows = _parsed(text, file, delimiter, quoted=kind == "csv", skipped=skipped)
        header = next(rows, _Row(0, [], 1, 1))
        _check_header(file, header, columns)
        places = [header.cells.index(column.name) for column in columns]
        wanted = itemgetter(*places)  # two or three
        labels: set[str] = set()
        within: dict[str, _RowWithin] = {}
        first, block = 1, []
        for row in _of_one_width(rows, file, header.cells, _repair(kind, delimiter)):
            if row.last_line > row.line and len(within) < _MOST_LABELS:
                for line in _rows_within(row, delimiter, places[-1]):
                    within.setdefault(line.label, line)
            elif len(labels) < _MOST_LABELS:
                labels.add(row.cells[places[-1]])
            block.append(wanted(row.cells))
            if len(block) == BATCH:
                yield _batch(block, columns, file, first)
                first, block = first + BATCH, []
        _refuse_rows_within(file, within, labels)
        yield _batch(block, columns, file, first)


def _batch(block: Sequence[tuple[str, ...]], columns: Sequence[Column], file: Path, first: int) -> pa.RecordBatch:
    cells = list(zip(*block, strict=True)) or [()] * len(columns)
    if columns[-1].lists and block:
        raise columns[-1].error(str(file), first, columns[-1].scalar_in_lists())
    return batch_of(
        [pa.array(values, column.arrow_type()) for values, column in zip(cells, columns, strict=True)], columns
    )


def _parsed(text: TextIO, file: Path, delimiter: str, *, quoted: bool, skipped: int) -> Iterator[_Row]:
    """Yield the header and the rows, blank lines left out; `skipped` lines of the file stand above."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
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
            "a quotation mark opens a text and none closes it"
            if "end of data" in str(error)
            else f"text follows a closing quotation mark in line {last}"
        )
        where = f"row {number}" if number else "header"
        lines = f"line {line}" if line == last else f"lines {line} to {last}"
        raise DataError(f"{file} {where} ({lines}): {problem}; {_QUOTING}") from error


def _check_header(file: Path, header: _Row, columns: Sequence[Column]) -> None:
    """Raise DataError unless the header names each of the columns, and only once."""
    named = [name for name in header.cells if name.strip()]
    if not named:
        raise DataError(f"{file} has no header; the first line names the columns")
    other = next((sign for sign in ";\t|," if len(named) == 1 and sign in named[0]), None)
    if other:
        raise DataError(
            f"{file} seems to be separated by {other!r}; separate csv by commas, name a tab-separated file .tsv, or "
            f"write the line sep={other} above the header"
        )
    require_columns(columns, named, str(file))


def _repair(kind: str, delimiter: str) -> str:
    """Return what to do about a row of another width: most often a text in it holds the separator or a line break."""
    if kind == "tsv":
        return "a tsv file cannot hold a text with a tab or a line break: give such rows as csv, jsonl or parquet"
    return f"put quotation marks around a text with a {delimiter!r} or a line break in it, or correct the row"


def _of_one_width(rows: Iterator[_Row], file: Path, header: Sequence[str], repair: str) -> Iterator[_Row]:
    """Yield the rows, each of which has as many cells as the first and no text beyond the last named column.

    Empty cells there come from a comma at the end of the lines; columns without a name before it are not read.
    """
    core = max(index for index, name in enumerate(header, start=1) if name.strip())
    width = None
    for row in rows:
        count = len(row.cells)
        width = width or count
        surplus = next((cell for cell in row.cells[core:] if cell.strip()), None) if count > core else None
        if core <= count == width and surplus is None:
            yield row
            continue
        where = f"{file} row {row.number} (line {row.line})"
        if core <= count <= len(header) and surplus is not None:
            raise DataError(
                f"{where} has {surplus[:40]!r} in a column without a name; name the column in the header, or {repair}"
            )
        rule = f"row 1 has {width}" if surplus is None and count >= core else f"the header names {core} columns"
        raise DataError(f"{where} has {count} cell{'s' if count > 1 else ''}, but {rule}; {repair}")


def _rows_within(row: _Row, delimiter: str, label: int) -> Iterator[_RowWithin]:
    """Yield the lines with a label within each text that could be rows between two stray quotation marks.

    Such a text is the end of a row, from the text's own column on, then whole rows, then the beginning of a row, up to
    that column. There are no quotation marks between the two, so each separator counts; only before a mark that is
    escaped by a backslash there can be more of them.
    """
    width = len(row.cells)
    for column, text in enumerate(row.cells):
        lines = [line for line in re.split(r"[\r\n]", text) if line]
        if len(lines) < 2:
            continue
        first, *whole, last = [line.split(delimiter) for line in lines]
        more = len(first) - (width - column)
        if more < 0 or (more and '\\"' not in lines[0]):
            continue
        if len(last) != column + 1 or any(len(cells) != width for cells in whole):
            continue
        if label >= column:
            yield _RowWithin(lines[0], first[label - width], row)
        for line, cells in zip(lines[1:-1], whole, strict=True):
            yield _RowWithin(line, cells[label], row)
        if label < column:
            yield _RowWithin(lines[-1], last[label], row)


def _refuse_rows_within(file: Path, within: Mapping[str, _RowWithin], labels: set[str]) -> None:
    """Raise DataError for a text that has swallowed rows: a line within it looks like a row, with a label of others.

    A stray quotation mark that happens to be closed further below is well-formed, and only this gives it away.
    """
    for label, line in within.items():
        if label in labels:
            raise DataError(
                f"{file} row {line.row.number} (lines {line.row.line} to {line.row.last_line}): a text in quotation "
                f"marks runs over line breaks, and its line {line.text[:60]!r} looks like a row; {_QUOTING}; "
                "if it is one text, give the rows as jsonl or parquet"
            )
