"""One file of rows, read by the ending of its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from finetune.data.cells import Column
from finetune.data.csv_rows import read_delimited
from finetune.data.file_signatures import refuse_other_format
from finetune.data.json_rows import read_json
from finetune.data.parquet_rows import read_parquet
from finetune.errors import DataError


def file_kind(file: Path) -> str:
    """Return csv, tsv, json, jsonl or parquet."""
    return file.suffix.lstrip(".").lower()


def read_file(file: Path, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in batches.

    Raises:
        DataError: the file cannot be read, or a row is malformed; the message names the row or line.
    """
    kind = file_kind(file)
    try:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty (0 bytes); it needs rows")
        refuse_other_format(file, kind)
        if kind == "parquet":
            yield from read_parquet(file, columns)
        elif kind in ("csv", "tsv"):
            yield from read_delimited(file, kind, columns)
        else:
            yield from read_json(file, kind, columns)
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}; correct the path or its rights") from error


def _not_utf8(file: Path) -> DataError:
    """Return the error that names the line which is not UTF-8."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                return DataError(f"{file} line {number} is not UTF-8 ({bad}); save the file as UTF-8")
    return DataError(f"{file} is not UTF-8; save it as UTF-8")
