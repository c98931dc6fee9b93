"""The data formats, chosen by the ending of the name: csv, tsv, json, jsonl, parquet and arrow, also compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from finetune.data.cell_values import Column
from finetune.data.compressed_files import check_archive, open_bytes, report_damaged_archive
from finetune.data.csv_rows import read_delimited
from finetune.data.file_signatures import archive_type, detect_other_format
from finetune.data.json_rows import read_json
from finetune.data.typed_rows import TYPED, ClassNames, read_typed
from finetune.errors import DataError
from finetune.recipe.data_files import compression, file_format, uncompressed_name

_NUM_FIRST_BYTES = 4096


def read_file(
    file: Path, columns: Sequence[Column], class_names: ClassNames | None = None, delimiter: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in batches.

    Args:
        class_names: see `read_typed`.
        delimiter: what separates the cells of a csv, tsv or txt file; None: what separates those of its header.

    Raises:
        DataError: the file cannot be read, or a row is malformed; the message names the row or line.
    """
    file_type = file_format(file)
    with readable(file, file_type):
        if file_type in TYPED:
            yield from read_typed(file, file_type, columns, class_names)
        elif file_type in ("csv", "tsv", "txt"):
            yield from read_delimited(file, file_type, columns, delimiter)
        else:
            yield from read_json(file, file_type, columns)


@contextmanager
def readable(file: Path, file_type: str) -> Iterator[None]:
    """Check that a file has content of its format; convert the errors of reading it in the block.

    Raises:
        DataError: the file cannot be read, is empty, is of another format, is a damaged archive, or is not UTF-8.
    """
    try:
        with report_damaged_archive(file):
            if not file.stat().st_size:
                raise DataError(f"{file} is empty (0 bytes); add rows")
            _check_first_bytes(file, file_type)
            try:
                yield
            except (DataError, UnicodeDecodeError):
                check_archive(file)  # the content of a damaged archive can look like wrong rows
                raise
    except UnicodeDecodeError as error:
        raise _not_utf8_error(file) from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}; correct the path or its permissions"
        ) from error


def _check_first_bytes(file: Path, file_type: str) -> None:
    """Raise DataError if the first bytes of a file belong to another format than the endings of its name.

    Args:
        file_type: csv, tsv, txt, json, jsonl, parquet or arrow.
    """
    packed = compression(file)
    if packed is not None:
        with file.open("rb") as content:
            start = content.read(_NUM_FIRST_BYTES)
        if archive_type(start) != packed:
            raise DataError(
                f"the name of {file} ends in {file.suffix}, but its first bytes are not those of a {packed} archive; "
                f"rename it to {uncompressed_name(file).name}"
            )
    with open_bytes(file) as content:
        start = content.read(_NUM_FIRST_BYTES)
    if not start:
        raise DataError(f"{file} is empty after unpacking; add rows")
    actual = detect_other_format(start, file_type, file.name)
    if actual is not None:
        what, fix = actual
        name = f"the name of {file} ends in {''.join(uncompressed_name(file).suffixes[-1:])}"
        if packed is not None:
            name += file.suffix
        if file_format(file) != file_type:  # another format was requested than that of the name
            name = f"{file} is read as {file_type}"
        raise DataError(f"{name}, but its first bytes are those of {what}; {fix}")


def _not_utf8_error(file: Path) -> DataError:
    """Return the error for a file that is not UTF-8; it names the first such line."""
    with open_bytes(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                return DataError(f"{file} line {number} is not UTF-8 ({bad}); save the file as UTF-8")
    return DataError(f"{file} is not UTF-8; save it as UTF-8")
