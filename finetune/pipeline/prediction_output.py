"""Where predictions are written: a file that appears when it is complete, standard output, or a table in a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.data.input_rows import Window
from finetune.data.row_writers import (
    OUTPUT_FORMATS,
    DelimitedWriter,
    JsonLinesWriter,
    ParquetWriter,
    RowWriter,
    readable_numbers,
)
from finetune.errors import DataError, TrainingError, printable
from finetune.runs.atomic_files import atomic_file
from finetune.runs.locks import locked_file

_MAX_SHOWN = 200  # characters of a text in the table
_ERRORS = "backslashreplace"  # a lone surrogate in a JSON text is written as JSON escapes it


@dataclass(frozen=True)
class Target:
    """Where predictions are written.

    Attributes:
        path: the file; None: standard output.
        format: csv, tsv, jsonl, parquet, or table.
    """

    path: Path | None
    format: str


def choose_target(output: Path | None, output_format: str | None, source: Path) -> Target:
    """Return where to write.

    Args:
        output_format: None: by the ending of `output`; on standard output a table in a terminal, and csv elsewhere.
        source: the file that is read.

    Raises:
        DataError: the format is unknown or does not fit, or the file cannot be written or is the one that is read.
    """
    if output is None:
        kind = output_format or ("table" if sys.stdout.isatty() else "csv")
        if kind == "parquet":
            raise DataError("parquet cannot be written to standard output; set --output")
        return Target(None, kind)
    kind = output_format or output.suffix.lstrip(".").lower()
    if kind == "table":
        raise DataError(f"--output-format table is for a terminal; leave out --output {output}, or set another format")
    if kind not in OUTPUT_FORMATS:
        raise DataError(
            f"the name of --output {output} ends in '{output.suffix}'; it must end in .csv, .tsv, .jsonl or .parquet, "
            "or set --output-format"
        )
    if output.is_dir():
        raise DataError(f"--output {output} is a folder; name a file")
    if output.exists() and not output.is_file():  # a new file would take the place of a pipe or a device
        raise DataError(f"--output {output} is a pipe or a device; name a file, or redirect standard output to it")
    if not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: there is no folder {output.parent}; create it")
    if output.exists() and source.exists() and output.samefile(source):
        raise DataError(f"--output {output} is the file that is read; name another file")
    return Target(output, kind)


class Output:
    """Writes windows of rows; `closed` is true when the reader of a pipe has ended, and no more rows are needed."""

    def __init__(self, writer: RowWriter, stream: TextIO | None) -> None:
        self._writer, self._stream = writer, stream
        self.closed = False

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Write the rows of a window with the columns `added`.

        Raises:
            DataError: the format cannot hold these rows.
            TrainingError: standard output cannot be written.
        """
        try:
            self._writer.write(window, added)
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            if self._stream is None:
                raise
            self.closed = isinstance(error, BrokenPipeError)
            discard_standard_output()
            if not self.closed:
                raise TrainingError(
                    f"cannot write standard output: {error.strerror or error}; free disk space, and start again"
                ) from error


def discard_standard_output() -> None:
    """Send what is still buffered to nowhere; Python would write it at the end, and fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError, io.UnsupportedOperation):  # not a real file, such as in a notebook
        return
    finally:
        os.close(null)


@contextmanager
def open_output(target: Target, text_names: list[str]) -> Iterator[Output]:
    """Yield the output; a file is renamed to its name at the end, and removed on any error.

    Args:
        text_names: the columns of the input that the table shows.

    Raises:
        TrainingError: the disk is full or read-only, or another process writes the same file.
    """
    if target.path is None:
        stream = sys.stdout
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():  # data, not text for this terminal
            stream.reconfigure(encoding="utf-8", errors=_ERRORS)
        writer = TableWriter(stream, text_names) if target.format == "table" else _text_writer(stream, target.format)
        yield Output(writer, stream)
        return
    lock = target.path.with_name(f".{target.path.name}.lock")
    with locked_file(lock, target.path), atomic_file(target.path) as temporary:
        if target.format == "parquet":
            parquet = ParquetWriter(temporary)
            try:
                yield Output(parquet, None)
                parquet.close()
            except BaseException:
                parquet.discard()
                raise
            return
        with temporary.open("x", encoding="utf-8", errors=_ERRORS, newline="") as file:
            yield Output(_text_writer(file, target.format), None)


def _text_writer(stream: TextIO, kind: str) -> RowWriter:
    return JsonLinesWriter(stream) if kind == "jsonl" else DelimitedWriter(stream, kind)


class TableWriter:
    """Prints the texts and the added columns as one table per window."""

    def __init__(self, stream: TextIO, text_names: list[str]) -> None:
        self._stream, self._text_names = stream, text_names

    def write(self, window: Window, added: pa.RecordBatch) -> None:
        """Print the rows of a window."""
        table = Table()
        table.add_column("row", justify="right", no_wrap=True)
        for name in self._text_names:
            table.add_column(printable(name))
        for name in added.schema.names:
            table.add_column(printable(name), no_wrap=True)
        columns = [column.to_pylist() for column in readable_numbers(added)]
        for number, row in enumerate(zip(*window.texts, *columns, strict=True), start=window.first):
            texts, values = row[: len(window.texts)], row[len(window.texts) :]
            # The columns without `no_wrap` are made narrower first: the texts, of which one line is shown.
            shown = [
                Text(printable(" ".join(text[:_MAX_SHOWN].split())), no_wrap=True, overflow="ellipsis")
                for text in texts
            ]
            table.add_row(str(number), *shown, *(_shown(value) for value in values))
        buffer = io.StringIO()
        width = shutil.get_terminal_size((120, 40)).columns
        is_terminal = self._stream.isatty()
        Console(file=buffer, width=width, force_terminal=is_terminal, markup=False, highlight=False).print(table)
        self._stream.write(buffer.getvalue())

    def close(self) -> None:
        """Do nothing: all rows are printed."""


def _shown(value: object) -> str:
    """Return a value of an added column as the table shows it."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))
